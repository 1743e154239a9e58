"""An exponential moving average of the parameters, which moves only with applied updates."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import torch
from torch import Tensor, nn


class Ema:
    """``average <- decay * average + (1 - decay) * parameter`` after each applied update.

    Buffers have no average: an evaluation of the average uses those of the network.
    """

    def __init__(self, network: nn.Module, decay: float) -> None:
        self._decay = decay
        self._names, parameters = zip(*network.named_parameters(), strict=True)
        self._parameters: list[Tensor] = [parameter.detach() for parameter in parameters]
        self._averages = [parameter.clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, refused: Tensor) -> None:
        """Move towards the parameters, unless ``refused`` (0-d, exactly 0 or 1) is 1."""
        steps = torch._foreach_sub(self._parameters, self._averages)
        torch._foreach_mul_(steps, (1.0 - self._decay) * (1.0 - refused))
        torch._foreach_add_(self._averages, steps)

    def tensors(self) -> Iterator[tuple[str, Tensor]]:
        """(name, average) of each parameter."""
        return zip(self._names, self._averages, strict=True)

    @contextlib.contextmanager
    def in_place(self) -> Iterator[None]:
        """The network has the averages as its parameters within the block."""
        kept = [parameter.clone() for parameter in self._parameters]
        torch._foreach_copy_(self._parameters, self._averages)
        try:
            yield
        finally:
            torch._foreach_copy_(self._parameters, kept)

    def state_dict(self) -> dict[str, Tensor]:
        return dict(self.tensors())

    @torch.no_grad()
    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        for name, average in self.tensors():
            average.copy_(state[name])
