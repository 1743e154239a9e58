"""The modules of a user's training as one network."""

from __future__ import annotations

from collections.abc import Sequence

from torch import nn
from torch.nn.parallel import DistributedDataParallel


def one_network(model: nn.Module | Sequence[nn.Module]) -> nn.Module:
    """The models as one, without DDP's wrapper: a capsule fits the model itself."""
    if isinstance(model, nn.Module):
        return model.module if isinstance(model, DistributedDataParallel) else model
    return nn.ModuleList([one_network(part) for part in model])
