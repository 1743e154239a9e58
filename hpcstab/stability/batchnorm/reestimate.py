"""Running statistics estimated anew from batches, when those of the training are lost."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase

from hpcstab.stability.gate.buffers import BufferRing
from hpcstab.stability.modes import modes_kept

T = TypeVar("T")


@torch.no_grad()
def reestimate(
    network: nn.Module, layers: Mapping[str, _NormBase], batches: Iterable[T], forward: Callable[[T], object]
) -> dict[str, int]:
    """Give ``layers`` the mean over clean passes of each batch's mean and unbiased variance.

    That is what their moving averages estimate: the network runs in training mode. A pass whose statistics of a layer
    are not finite does not count for that layer. All else stays as it is: other buffers and layers, the number of
    batches that a layer has seen, momentum, modes. Sums are float64. The caller puts random generators back.

    Args:
        network: in which the layers are.
        layers: by name.
        batches: what is given to ``forward``, one pass each.
        forward: a forward pass as in the training.

    Returns:
        Clean passes by layer; a layer without one is left as it was.
    """
    estimates = {name: _Estimate(layer) for name, layer in layers.items()}
    kept = BufferRing(network, 1)
    kept.keep(0)
    try:
        with modes_kept(network):
            network.train()
            for batch in batches:
                forward(batch)
    finally:
        for estimate in estimates.values():
            estimate.detach()
        kept.put_back(0)
    return {name: estimate.apply() for name, estimate in estimates.items()}


class _Estimate:
    """Watches one layer: with momentum 1 its running statistics after a pass are those of the pass alone."""

    def __init__(self, layer: _NormBase) -> None:
        assert layer.running_mean is not None
        assert layer.running_var is not None
        self._layer = layer
        self._momentum = layer.momentum
        layer.momentum = 1.0
        self._sums = [torch.zeros_like(each, dtype=torch.float64) for each in (layer.running_mean, layer.running_var)]
        self._count = torch.zeros((), dtype=torch.float64, device=layer.running_mean.device)
        self._hooks = [layer.register_forward_pre_hook(self._before), layer.register_forward_hook(self._after)]

    def detach(self) -> None:
        for hook in self._hooks:
            hook.remove()
        self._layer.momentum = self._momentum

    def apply(self) -> int:
        """Write the means into the layer where there was a clean pass; how many there were."""
        count = int(self._count)
        if count:
            for buffer, total in zip(self._buffers(), self._sums, strict=True):
                buffer.copy_(total / count)
        return count

    def _buffers(self) -> tuple[Tensor, Tensor]:
        assert self._layer.running_mean is not None
        assert self._layer.running_var is not None
        return self._layer.running_mean, self._layer.running_var

    def _before(self, *_: Any) -> None:
        # the old statistics count with weight 0, and 0 x NaN is NaN
        mean, var = self._buffers()
        mean.zero_()
        var.fill_(1.0)

    def _after(self, *_: Any) -> None:
        mean, var = self._buffers()
        clean = torch.cat([mean, var]).isfinite().all()
        for total, seen in zip(self._sums, (mean, var), strict=True):
            total += torch.where(clean, seen.double(), 0.0)
        self._count += clean
