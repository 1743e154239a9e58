"""The three lines under DDP: all ranks decide alike, whoever had the fault."""

from __future__ import annotations

import json
import subprocess
import sys
from typing import Any

import pytest

from tests.conftest import REPOSITORY


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each rank says of each case."""
    meeting = str(tmp_path_factory.mktemp("ranks") / "meeting")
    command = [sys.executable, "-m", "tests.stability.two_ranks"]
    ranks = [
        subprocess.Popen([*command, str(rank), meeting], stdout=subprocess.PIPE, text=True, cwd=REPOSITORY)
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=200)[0] for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    reports = [[json.loads(line) for line in output.splitlines() if line.startswith("{")] for output in outputs]
    return [{report["case"]: report for report in each} for each in reports]


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
