"""Two ranks train one network: the same decisions, the same numbers, one set of files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from hpcstab.metrics import read_events, read_history
from hpcstab.rundir import RunDir
from hpcstab.training.ranks import Ranks
from tests.training.two_ranks import CASES, STEP, Case
from tests.two_processes import reports_of_two

Said = tuple[list[dict[str, Any]], Path]


@pytest.fixture(scope="module")
def said(tmp_path_factory: pytest.TempPathFactory) -> Said:
    """What each rank says of each case, and where the runs are."""
    root = tmp_path_factory.mktemp("ranks")
    return reports_of_two("tests.training.two_ranks", root / "meeting", str(root)), root


@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name)
def test_two_ranks_end_as_a_loop_without_the_fault(said: Said, case: Case) -> None:
    reports, root = said
    for report in reports:
        stopped = ["stopped"] if case.stop_on is not None else ["died"] if case.dies_at is not None else []
        assert report[case.name] == {
            "case": case.name,
            "states": [*stopped, "completed"],
            "network": True,
            "optimizer": True,
            "average": True,
        }
    (path,) = (root / f"run{CASES.index(case)}").glob("toy/before/*")
    history = read_history(RunDir(path).metrics_csv)
    assert list(history) == list(range(15)), "one rank writes, and every step is there"
    assert (history[STEP]["outcome"] == "skipped") == case.loses_batch
    events = [event for event in read_events(RunDir(path).events_jsonl) if event["kind"] == "capsule_saved"]
    assert [event["data"]["guilty_rank"] for event in events] == [case.rank] * len(events)
    # those of rank 1 are replaced by rank 0's before they are used
    assert bool(events) == (case.loses_batch or case.poisons_buffer_of == 0)


def test_each_rank_has_its_share() -> None:
    shares = [Ranks(rank, 3).share(list(range(9))) for rank in range(3)]
    assert sorted(index for share in shares for index in share) == list(range(9))
    assert {len(share) for share in shares} == {3}
