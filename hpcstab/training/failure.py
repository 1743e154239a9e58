"""Watching for failure: the first non-finite step, the first failing one, the end by divergence."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from hpcstab.config import FailureCondition
from hpcstab.errors import ConfigError
from hpcstab.training.records import Records


class FailureWatch:
    """Reads every recorded row; a streak of ``budget`` non-finite losses is divergence, for None never.

    With guards it is None: they count refused steps themselves, and their ladder answers before anything ends.
    """

    def __init__(self, conditions: Sequence[FailureCondition], budget: int | None, header: Sequence[str]) -> None:
        for condition in conditions:
            if condition.column not in header:
                raise ConfigError(f"failure: '{condition.column}' is no column of metrics.csv: {', '.join(header)}")
        self._conditions = conditions
        self._budget = budget
        self.streak = 0

    def see(self, row: Mapping[str, Any], records: Records) -> str | None:
        """Record firsts of this row; the reason where the run has diverged."""
        step = row["step"]
        if not (row["loss_finite"] and row["grad_finite"]):
            figures = {name: row[name] for name in ("loss", "grad_norm")}
            records.nonfinite(step, what="step", **figures)
        for condition in self._conditions:
            if _meets(condition, row[condition.column]):
                records.first(
                    "first_failure_step", step, "first_failure", what=condition.column, value=row[condition.column]
                )
        self.streak = 0 if row["loss_finite"] else self.streak + 1
        if self._budget is not None and self.streak >= self._budget:
            return f"loss non-finite in {self.streak} steps in a row"
        return None


def _meets(condition: FailureCondition, value: float) -> bool:
    above = condition.above is not None and value > condition.above
    below = condition.below is not None and value < condition.below
    return above or below
