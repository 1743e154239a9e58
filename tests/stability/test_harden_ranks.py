"""The three lines under DDP: all ranks decide alike, whoever had the fault."""

from __future__ import annotations

from typing import Any

import pytest

from tests.two_processes import reports_of_two


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank says of each case."""
    return reports_of_two("tests.stability.two_ranks", tmp_path_factory.mktemp("ranks") / "meeting")


@pytest.mark.parametrize(
    ("case", "kinds", "updates"),
    [
        ("batch of rank 0", ["capsule_saved", "step_refused"], 7),
        ("batch of rank 1", ["capsule_saved", "step_refused"], 7),
        ("machine of rank 1", ["capsule_saved", "not_reproduced"], 8),
        ("scale of rank 1", ["rescaled"], 8),
    ],
)
def test_ranks_decide_alike(said: list[dict[str, Any]], case: str, kinds: list[str], updates: int) -> None:
    """BatchNorm statistics differ between ranks, and each rank's are those of a loop without the fault."""
    for rank, reports in enumerate(said):
        report = reports[case]
        assert report["same"], f"rank {rank}"
        assert report["events"] == kinds
        assert report["updates"] == updates
        assert set(report["reasons"]) == (set() if "scale" in case else {"nonfinite_loss"})  # an overflow is no failure
        assert report["scale"] == (2.0 if "scale" in case else None)
        written = [] if "scale" in case else [f"rank{rank}"]
        assert [name.split("_")[-1] for name in report["capsules"]] == written
