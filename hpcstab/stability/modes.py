"""Training and evaluation mode of a network, module by module."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

from torch import nn


@contextlib.contextmanager
def modes_kept(network: nn.Module) -> Iterator[None]:
    """After the block every module is in the mode that it was in, also one that its author froze in evaluation mode.

    ``network.train(was_training)`` would wake the frozen ones.
    """
    modes = [(module, module.training) for module in network.modules()]
    try:
        yield
    finally:
        for module, training in modes:
            module.training = training
