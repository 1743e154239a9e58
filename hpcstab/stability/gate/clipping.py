"""The norm of the gradients, and the factor that clips them. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6


def total_grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm over all gradients, a 0-d tensor; NaN or inf where one of them is, or where finite ones overflow it."""
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip_scale(grad_norm: Tensor, max_norm: float | None) -> Tensor:
    """Factor that brings the norm down to ``max_norm``: 1 where it is below, NaN where the norm is."""
    if max_norm is None:
        return torch.ones_like(grad_norm)
    return torch.clamp(max_norm / (grad_norm + _EPS), max=1.0)
