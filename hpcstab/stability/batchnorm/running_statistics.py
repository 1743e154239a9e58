"""The running statistics of normalisation layers: looked at, repaired and kept on the device, without a wait.

A repair is decided layer by layer where the statistics are, so that it takes effect in the step that was looked at,
whenever the host reads of it. It must read of it: a repair that nobody hears of is a mask.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpcstab.stability.batchnorm.layers import norm_layers
from hpcstab.stability.deferred import Deferred

Repair = Literal["none", "reset", "restore", "reestimate"]
_NUM_COUNTS = 3


@dataclass(frozen=True)
class SickLayer:
    """What was wrong with the running mean and variance of a layer; ``num_negative`` counts finite variances."""

    name: str
    num_nan: int
    num_inf: int
    num_negative: int


@dataclass(frozen=True)
class Findings:
    """What a look at all layers found, on its way from the device."""

    layers: tuple[str, ...]
    deferred: Deferred

    def read(self) -> list[SickLayer]:
        """The sick layers, none where all is well; waits for the device where it is not done."""
        counts = [int(count) for count in self.deferred.read()]
        rows = [counts[first : first + _NUM_COUNTS] for first in range(0, len(counts), _NUM_COUNTS)]
        return [SickLayer(name, *row) for name, row in zip(self.layers, rows, strict=True) if any(row)]


class RunningStatistics:
    """Running mean and variance of every normalisation layer that keeps them.

    Args:
        network: its layers are found once; their buffers may be replaced later.
        repair: what :meth:`check` does about a sick layer. ``none``: nothing. ``reset``: a mean that is not finite
            becomes 0, a sick variance 1, as write-up 2 does it; that is another function than the one that was
            trained, and counts as a mask. ``restore``: mean and variance of the last check that the layer passed.
            ``reestimate``: the same at once, and the caller estimates them anew (see
            :func:`hpcstab.stability.batchnorm.reestimate.reestimate`), which takes forward passes.
    """

    def __init__(self, network: nn.Module, repair: Repair) -> None:
        self.repair = repair
        self.layers: dict[str, _NormBase] = {
            name or "(network)": layer for name, layer in norm_layers(network) if layer.running_mean is not None
        }
        self._kept = {name: [torch.zeros_like(m), torch.ones_like(v)] for name, (m, v) in self._current().items()}
        self.check()  # what is sound at the start is kept

    @torch.no_grad()
    def check(self, refused: Tensor | None = None) -> Findings | None:
        """Look at all layers, repair the sick, keep the sound; nothing here waits for the device.

        Args:
            refused: 0-d, 1 where the gate refused the step: what a refused step left is never kept.

        Returns:
            What was wrong before the repair; None for a network without such layers.
        """
        if not self.layers:
            return None
        counts = []
        for name, (mean, var) in self._current().items():
            found = _counts(mean, var)
            sick = found.any()
            self._mend(name, mean, var, sick)
            sound = ~sick if refused is None else ~sick & (refused == 0)
            for kept, now in zip(self._kept[name], (mean, var), strict=True):
                kept.copy_(torch.where(sound, now, kept))
            counts.append(found)
        return Findings(tuple(self.layers), Deferred(torch.cat(counts).double()))

    def state_dict(self) -> dict[str, list[Tensor]]:
        """Copies of the kept mean and variance of each layer."""
        return {name: [tensor.clone() for tensor in kept] for name, kept in self._kept.items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        for name, kept in self._kept.items():
            for ours, theirs in zip(kept, state[name], strict=True):
                ours.copy_(theirs)

    def _current(self) -> dict[str, tuple[Tensor, Tensor]]:
        found = {}
        for name, layer in self.layers.items():
            assert layer.running_mean is not None
            assert layer.running_var is not None
            found[name] = (layer.running_mean, layer.running_var)
        return found

    def _mend(self, name: str, mean: Tensor, var: Tensor, sick: Tensor) -> None:
        if self.repair == "none":
            return
        if self.repair == "reset":
            mean.copy_(torch.where(mean.isfinite().all(), mean, torch.zeros_like(mean)))
            var.copy_(torch.where((var.isfinite() & (var >= 0)).all(), var, torch.ones_like(var)))
            return
        for kept, now in zip(self._kept[name], (mean, var), strict=True):
            now.copy_(torch.where(sick, kept, now))


def _counts(mean: Tensor, var: Tensor) -> Tensor:
    """(NaN, infinite, negative) entries, int64 (3,)."""
    both = torch.cat([mean, var])
    return torch.stack([both.isnan().sum(), both.isinf().sum(), ((var < 0) & var.isfinite()).sum()])
