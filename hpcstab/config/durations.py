"""Durations inside a training: ``{epochs: 40}`` or ``{steps: 100}``."""

from __future__ import annotations

from pydantic import Field, model_serializer, model_validator

from hpcstab.config.section import Section


class Duration(Section):
    """A length of training, in epochs or in steps: exactly one of the two is given."""

    epochs: float | None = Field(default=None, ge=0)
    steps: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_unit(self) -> Duration:
        if (self.epochs is None) == (self.steps is None):
            raise ValueError("a duration is {epochs: N} or {steps: N}, exactly one of the two")
        return self

    @classmethod
    def is_value(cls) -> bool:
        return True

    def in_steps(self, steps_per_epoch: int, factor: float) -> int:
        """Length in steps, shrunk by a scale's ``trainer.duration_factor``; at least 1 unless it is 0."""
        steps = self.steps if self.steps is not None else (self.epochs or 0.0) * steps_per_epoch
        return max(1, round(steps * factor)) if steps > 0 else 0

    @model_serializer
    def _as_yaml(self) -> dict[str, float | int]:
        return {"steps": self.steps} if self.steps is not None else {"epochs": self.epochs or 0.0}

    def __str__(self) -> str:
        return f"{self.steps} steps" if self.steps is not None else f"{self.epochs:g} epochs"
