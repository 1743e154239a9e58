"""Normalisation layers with running statistics: their configuration."""

from __future__ import annotations

from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _NormBase


def norm_layers(network: nn.Module) -> Iterator[tuple[str, _NormBase]]:
    """(name, layer) of every normalisation layer that can keep running statistics."""
    for name, module in network.named_modules():
        if isinstance(module, _NormBase):
            yield name, module


def configure_batchnorm(network: nn.Module, momentum: float | None, eps: float | None) -> int:
    """Set momentum and eps on every such layer; None keeps a layer's own value. Returns how many there are."""
    count = 0
    for _, layer in norm_layers(network):
        if momentum is not None:
            layer.momentum = momentum
        if eps is not None:
            layer.eps = eps
        count += 1
    return count
