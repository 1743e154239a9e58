"""What a training remembers of its running statistics: a part of its state."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from hpcstab.stability.batchnorm.running_statistics import RunningStatistics


@dataclass
class BatchNormCare:
    """How many checks had to repair, and the layers of those that wait for their step (``waiting``: step -> layers)."""

    statistics: RunningStatistics
    num_repairs: int = 0
    waiting: dict[int, list[str]] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        return any(due <= step for due in self.waiting)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": self.statistics.state_dict(),
            "num_repairs": self.num_repairs,
            "waiting": {due: list(layers) for due, layers in self.waiting.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.statistics.load_state_dict(state["kept"])
        self.num_repairs = state["num_repairs"]
        self.waiting = {due: list(layers) for due, layers in state["waiting"].items()}
