"""What the gate says of a step: on the device, and read from there."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Decision:
    """What the gate saw and did in a step, on the device, in memory that the next step writes: copy what is to last.

    Attributes:
        figures: fp32 vector that :class:`GateFigures` reads.
        names: of its entries.
        refused: whether the update was left out: 0-d, exactly 0 or 1.
        refuses: whether a bad step is refused.
    """

    figures: Tensor
    names: tuple[str, ...]
    refused: Tensor
    refuses: bool


@dataclass(frozen=True)
class GateFigures:
    """What ``Decision.figures`` say, read from the device.

    Attributes:
        clip_divisor: what gradients were divided by, 1 where they were not clipped.
        bad: of this step, or of one before it that has latched.
    """

    loss: float
    grad_norm: float
    buffers_finite: bool
    clip_divisor: float
    bad: bool

    @classmethod
    def of(cls, values: Sequence[float]) -> GateFigures:
        loss, grad_norm, *largest_buffers, clip_divisor, bad = values
        return cls(loss, grad_norm, all(map(math.isfinite, largest_buffers)), clip_divisor, bool(bad))
