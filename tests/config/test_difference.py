"""What differs between variants, key by key, also where a section is null in one of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from hpcstab.config import Difference, differences
from tests.config.test_yaml import changed, load

HALF = {"precision.dtype": "fp16", "precision.loss_scale": {"initial": 1024.0, "growth_every": 50}}


def half_as_fix(values: dict[str, Any]) -> None:
    settings = {**HALF, "stability.gate": "closed"}
    values["fixes"]["half"] = {"kind": "upkeep", "why": "fp16", "set": settings}


def test_a_section_that_is_null_in_one_variant_differs_in_its_keys(tmp_path: Path) -> None:
    """In either order; the fix that set the section has set its keys."""
    experiment = load(tmp_path, changed(half_as_fix))
    for variants in (["before", "before+half"], ["before+half", "before"]):
        found = {row.key: row for row in differences(experiment, variants, "tiny")}
        assert list(found) == [
            *("precision.dtype", "precision.loss_scale.initial", "precision.loss_scale.growth_every"),
            "stability.gate",
        ]
        initial = found["precision.loss_scale.initial"]
        assert dict(zip(variants, initial.values, strict=True)) == {"before": None, "before+half": 1024.0}
        assert dict(zip(variants, initial.set_by, strict=True)) == {"before": None, "before+half": "half"}


def test_equal_sections_do_not_differ(tmp_path: Path) -> None:
    experiment = load(tmp_path, changed(half_as_fix))
    rows = differences(experiment, ["before+half", "before+lower_lr+half"], "tiny")
    assert rows == [Difference("optimizer.lr", (0.001, 0.0001), (None, "lower_lr"))]
