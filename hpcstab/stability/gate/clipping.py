"""The norm of the gradients, and the factor that clips them. Nothing here waits for the device."""

from __future__ import annotations

from collections.abc import Iterable

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

_EPS = 1e-6  # torch.nn.utils.clip_grad_norm_ divides by norm + 1e-6


def total_grad_norm(parameters: Iterable[Tensor]) -> Tensor:
    """L2 norm over all gradients, a 0-d tensor; NaN or inf where one of them is, or where finite ones overflow it."""
    return total_norm([gradient for parameter in parameters if (gradient := parameter.grad) is not None])


def total_norm(gradients: list[Tensor]) -> Tensor:
    """The same of gradients on one device: torch's own get_total_norm, without its sorting by device and type."""
    if len({gradient.dtype for gradient in gradients}) != 1:
        return get_total_norm(gradients)
    norm: Tensor = torch.linalg.vector_norm(torch.stack(torch._foreach_norm(gradients)))
    return norm


class Clipping:
    """Clipping to ``max_norm`` as a divisor of the gradients; None never clips.

    The same as ``clip_grad_norm_`` to rounding: it multiplies by ``max_norm / (norm + 1e-6)``, at most 1.
    """

    def __init__(self, max_norm: float | None, device: torch.device | str = "cpu") -> None:
        self._per_norm = None if max_norm is None else 1.0 / max_norm
        self._offset = torch.tensor(0.0 if max_norm is None else _EPS / max_norm, device=device)

    def divisor(self, grad_norm: Tensor, out: Tensor | None = None) -> Tensor | None:
        """What gradients with this norm are divided by, at least 1 and 0-d: NaN where the norm is. None for nothing.

        Written to ``out`` where it is given.
        """
        if self._per_norm is None:
            return None
        return torch.add(self._offset, grad_norm, alpha=self._per_norm, out=out).clamp_min_(1.0)


def clip_scale_of(divisor: float) -> float:
    """The factor on the gradients that a divisor means, on the host."""
    return 1.0 / divisor
