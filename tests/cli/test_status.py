"""How a run is shown in one line."""

from __future__ import annotations

from typing import Any

import pytest

from hpcstab.cli.status import one_line
from hpcstab.launch.queue import RunState


@pytest.mark.parametrize(
    ("metric", "value", "unit", "shown"),
    [
        ("psnr", 20.149, "dB", "psnr 20.1 dB"),
        ("dice", 0.7134, "1", "dice 0.713"),
        ("dice", 0.7134, None, "dice 0.713"),
    ],
)
def test_a_figure_without_a_unit_has_digits_and_no_one(metric: str, value: float, unit: str | None, shown: str) -> None:
    values: dict[str, Any] = dict.fromkeys(RunState.__dataclass_fields__)
    values |= {"run_id": "m/v/r", "model": "m", "variant": "v", "seed": 0, "state": "completed", "age_s": 0.0}
    values |= {"step": 3, "total_steps": 3, "metric": metric, "value": value, "unit": unit}
    assert shown == one_line(RunState(**values)).partition("3/3")[2].strip()
