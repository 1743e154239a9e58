"""What a health check measures on the device for the guards; read later, like all figures of a step.

It happens at the cadence of health checks alone and waits for nothing. The statistics of a batch need no pass of their
own: a running statistic r becomes (1 - f) r + f b, and the gate keeps the r of before the step.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpcstab.stability.batchnorm.layers import norm_layers
from hpcstab.stability.deferred import Deferred
from hpcstab.stability.gate.gate import Gate
from hpcstab.stability.guards.drift import LARGEST_VAR, MEAN_SHIFT, VAR_RATIO
from hpcstab.stability.guards.headroom import LARGEST_GRADIENT, LOSS_SCALE


@dataclass(frozen=True)
class Readings:
    """Figures by name, on their way from the device."""

    names: tuple[str, ...]
    deferred: Deferred

    def read(self) -> dict[str, float]:
        return dict(zip(self.names, self.deferred.read(), strict=True))


class HealthProbe:
    """Measures one step; made after the backward pass, since the optimizer's kernel may rewrite the gradients.

    Args:
        num_updates: of the running statistics in this step: one a micro-batch.
        fp16: whether gradients can overflow.
    """

    def __init__(self, network: nn.Module, gate: Gate, num_updates: int, *, fp16: bool) -> None:
        self._network = network
        self._gate = gate
        self._num_updates = num_updates
        self._figures: dict[str, Tensor] = {}
        gradients = [p.grad for p in network.parameters() if p.grad is not None] if fp16 else []
        if gradients:
            largest = torch.stack(torch._foreach_norm(gradients, float("inf"))).max()
            scale = gate.loss_scale
            # a copy: the gate may change the scale in this very step
            self._figures = {
                LARGEST_GRADIENT: largest,
                LOSS_SCALE: scale.value.clone() if scale else torch.ones_like(largest),
            }

    @torch.no_grad()
    def after_step(self, step: int) -> Readings | None:
        """The readings; None where there is nothing to measure."""
        before = self._gate.buffers.kept(step)
        for name, layer in norm_layers(self._network):
            prefix = f"{name}." if name else ""
            if layer.running_mean is not None and f"{prefix}running_mean" in before:
                mean, var = before[f"{prefix}running_mean"], before[f"{prefix}running_var"]
                figures = _drift(layer, mean, var, self._num_updates)
                self._figures |= {f"batchnorm.{name}.{figure}": value for figure, value in figures.items()}
        if not self._figures:
            return None
        values = torch.stack([value.double() for value in self._figures.values()])
        return Readings(tuple(self._figures), Deferred(values))


def _drift(layer: _NormBase, mean: Tensor, var: Tensor, num_updates: int) -> dict[str, Tensor]:
    """Largest over the channels; ``mean`` and ``var`` are the running ones of before the step."""
    assert layer.running_mean is not None
    assert layer.running_var is not None
    share = _share_of_batch(layer, num_updates)
    shift = (layer.running_mean - mean).abs() / share / (var + layer.eps).sqrt()
    batch_var = (var + (layer.running_var - var) / share).clamp(min=0.0)
    ratio = (batch_var + layer.eps) / (var + layer.eps)
    return {
        MEAN_SHIFT: shift.max(),
        VAR_RATIO: torch.maximum(ratio, ratio.reciprocal()).max(),
        LARGEST_VAR: layer.running_var.max(),
    }


def _share_of_batch(layer: _NormBase, num_updates: int) -> float | Tensor:
    """The share of a running statistic that a step replaces."""
    if layer.momentum is not None:
        return 1.0 - (1.0 - float(layer.momentum)) ** num_updates
    assert layer.num_batches_tracked is not None  # momentum None is a mean over all batches
    return num_updates / layer.num_batches_tracked.clamp(min=1).double()
