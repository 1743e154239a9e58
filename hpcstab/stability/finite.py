"""Which tensors are not finite, by name."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of floating-point tensors that hold a NaN or an infinity; one read from the device in all."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return []
    flags = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, flags, strict=True) if not finite]
