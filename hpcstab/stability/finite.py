"""Which tensors are not finite, by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of floating-point tensors that hold a NaN or an infinity; one read from the device where none does."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    # no NaN and no infinity leaves a sum finite; it is one pass over the memory, isfinite on a CPU 15 times as long
    suspects = _without(named, [tensor.sum().isfinite() for _, tensor in named])
    return [name for name, _ in _without(suspects, [tensor.isfinite().all() for _, tensor in suspects])]


def _without(named: list[tuple[str, Tensor]], finite: list[Tensor]) -> list[tuple[str, Tensor]]:
    """Those whose flag (0-d, boolean) is False."""
    flags = torch.stack(finite).tolist() if finite else []
    return [pair for pair, is_finite in zip(named, flags, strict=True) if not is_finite]
