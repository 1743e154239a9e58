"""What a failure cost: steps that no checkpoint holds, steps after the numbers were useless, and hours."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from hpcstab.explain.facts import Facts
from hpcstab.state.evidence import number


@dataclass(frozen=True)
class Cost:
    """``lost_steps``: since the checkpoint that can be gone on from; ``useless_steps``: since the first one not finite.

    ``seconds`` are those of the lost steps, by metrics.csv; ``gpu_hours`` of all attempts, None where there was no GPU.
    """

    lost_steps: int
    from_step: int | None
    useless_steps: int
    seconds: float
    num_gpus: int
    gpu_hours: float | None

    @property
    def lost_gpu_hours(self) -> float | None:
        return self.seconds * self.num_gpus / 3600 if self.num_gpus else None

    def as_json(self) -> dict[str, Any]:
        return {**vars(self), "lost_gpu_hours": self.lost_gpu_hours}


def cost_of(facts: Facts) -> Cost:
    """Counted from the rows, the checkpoints and the attempts."""
    healthy = facts.last_healthy
    since = healthy.step if healthy else 0
    rows = [row for row in facts.history if int(row["step"]) >= since]
    bad_from = facts.first_nonfinite_step
    useless = 0 if bad_from is None else sum(int(row["step"]) >= bad_from for row in facts.history)
    devices = facts.attempts[-1].get("devices") if facts.attempts else None
    return Cost(
        lost_steps=len(rows),
        from_step=healthy.step if healthy else None,
        useless_steps=useless,
        seconds=sum(_seconds(row) for row in rows),
        num_gpus=len(devices) if isinstance(devices, list) else 0,
        gpu_hours=facts.gpu_hours,
    )


def _seconds(row: Mapping[str, str]) -> float:
    try:
        return max(0.0, number(float(row["step_time_s"])) or 0.0)
    except (KeyError, ValueError):
        return 0.0
