"""A refused step gets a second run, so that a fault of the machine is told from one of the batch."""

from __future__ import annotations

import math
from typing import Literal

from hpcstab.stability.gate.loss_scale import LossScale

REASONS = ("spike", "norm_overflow", "nonfinite_gradient", "nonfinite_buffers", "nonfinite_loss")
"""Why a step is refused, from what follows to what causes: of several ranks the last one counts."""


def reason_of(loss: float, grad_norm: float, *, buffers_finite: bool) -> str:
    """Why a step was refused, as far as its figures tell."""
    if not math.isfinite(loss):
        return "nonfinite_loss"
    if not math.isfinite(grad_norm):
        return "nonfinite_gradient"
    return "spike" if buffers_finite else "nonfinite_buffers"


class Retrial:
    """What becomes of one step that was refused; asked anew each time that it is.

    Attributes:
        was_repeated: it has had its second run.
    """

    def __init__(self, loss_scale: LossScale | None) -> None:
        self._loss_scale = loss_scale
        self._scale_before = loss_scale.state_dict() if loss_scale else None
        self.was_repeated = False

    def is_for_capsule(self, reason: str) -> bool:
        """Whether this run is the first that no smaller loss scale can cure; ask before :meth:`verdict`."""
        overflows = reason == "nonfinite_gradient" and self._loss_scale is not None and self._loss_scale.can_back_off
        return not self.was_repeated and not overflows

    def verdict(self, reason: str) -> Literal["rescaled", "held", "skipped"]:
        """``rescaled``: again with half the loss scale; ``held``: once more as it is; ``skipped``: leave it out."""
        if reason == "nonfinite_gradient" and self._loss_scale is not None and self._loss_scale.back_off():
            return "rescaled"
        if self.was_repeated or reason == "spike":  # a finite step needs no second opinion
            if self._loss_scale is not None and self._scale_before is not None:
                self._loss_scale.load_state_dict(self._scale_before)  # it was not the scale
            return "skipped"
        self.was_repeated = True
        return "held"
