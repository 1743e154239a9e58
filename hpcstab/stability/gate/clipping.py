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


class Clipping:
    """Clipping to ``max_norm`` as a divisor of the gradients; None never clips.

    The same as ``clip_grad_norm_`` to rounding: it multiplies by ``max_norm / (norm + 1e-6)``, at most 1.
    """

    def __init__(self, max_norm: float | None, device: torch.device | str = "cpu") -> None:
        self._per_norm = None if max_norm is None else 1.0 / max_norm
        self._offset = torch.tensor(0.0 if max_norm is None else _EPS / max_norm, device=device)
        self._one = torch.ones((), device=device)

    def divisor(self, grad_norm: Tensor) -> Tensor | None:
        """What gradients with this norm are divided by, at least 1 and 0-d: NaN where the norm is. None for nothing."""
        if self._per_norm is None:
            return None
        return torch.add(self._offset, grad_norm, alpha=self._per_norm).clamp_min_(1.0)

    def scale(self, divisor: Tensor | None) -> Tensor:
        """The factor on the gradients that a divisor means: 1 where it is None."""
        return self._one if divisor is None else divisor.reciprocal()
