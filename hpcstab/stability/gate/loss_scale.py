"""The factor on an fp16 loss that keeps small gradients above the smallest fp16 number, as a device tensor.

Unlike ``torch.amp.GradScaler`` it never decides anything: the gate does, and tells it.
"""

from __future__ import annotations

import torch
from torch import Tensor

MIN_SCALE = 1.0
"""Gradients that overflow without any scale are not the scale's fault."""


class LossScale:
    """Grows after ``growth_every`` applied steps in a row, backs off when it is told to: by two, if not said otherwise.

    Attributes:
        value: the factor, a 0-d fp32 tensor on the device.
        num_applied: applied steps since it last changed, 0-d int32.
    """

    def __init__(
        self,
        initial: float,
        growth_every: int,
        device: torch.device,
        *,
        growth_factor: float = 2.0,
        backoff_factor: float = 0.5,
    ) -> None:
        self.value = torch.full((), initial, device=device)
        self.num_applied = torch.zeros((), dtype=torch.int32, device=device)
        self._growth_every = growth_every
        self._growth_factor = growth_factor
        self._backoff_factor = backoff_factor

    def after_step(self, refused: Tensor, *, backs_off: bool) -> None:
        """Count an applied step, grow where it is time; ``backs_off``: halve where the step was refused.

        Without ``backs_off`` a refused step changes nothing, since it runs again.
        """
        applied = refused == 0
        count = self.num_applied + applied
        grown = count >= self._growth_every
        value = torch.where(grown, self.value * self._growth_factor, self.value)
        if backs_off:
            value = torch.where(applied, value, self.value * self._backoff_factor)
            count = torch.where(applied, count, torch.zeros_like(count))
        self.value.copy_(value)
        self.num_applied.copy_(torch.where(grown, torch.zeros_like(count), count))

    @property
    def can_back_off(self) -> bool:
        """Whether it is above its smallest; waits for the device."""
        return float(self.value) > MIN_SCALE

    def back_off(self) -> bool:
        """Halve it, on the host's word; False where it is at its smallest already."""
        if not self.can_back_off:
            return False
        self.value.mul_(self._backoff_factor)
        self.num_applied.zero_()
        return True

    def state_dict(self) -> dict[str, Tensor]:
        """A copy of value and count."""
        return {"value": self.value.clone(), "num_applied": self.num_applied.clone()}

    def load_state_dict(self, state: dict[str, Tensor]) -> None:
        self.value.copy_(state["value"])
        self.num_applied.copy_(state["num_applied"])
