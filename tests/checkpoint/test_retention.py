"""Which checkpoints of a run stay: by health, by their evaluation, by the cadence; and what the index says of them."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import CheckpointStore, read_checkpoint
from hpcstab.checkpoint.format import discard
from hpcstab.errors import CheckpointError
from hpcstab.rundir import RunDir, create_run_dir, read_json


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path, "toy", "before", 0, "00" * 32)


def save(
    run: RunDir, *steps: int, healthy: bool = True, scheduled: bool = True, score: tuple[str, float] | None = None
) -> None:
    """Checkpoints of these steps; ``score``: the better direction and the value of their evaluation."""
    evaluation = {"metric": "error", "direction": score[0], "value": score[1]} if score else None
    facts: dict[str, Any] = {"scheduled": scheduled, "evaluation": evaluation}
    for step in steps:
        CheckpointStore(run).save(step, {"step": torch.tensor(step)}, facts, healthy=healthy)


def steps(run: RunDir) -> list[int]:
    return sorted(int(path.name.removeprefix("step_")) for path in run.checkpoints.glob("step_*"))


def index(run: RunDir) -> dict[str, Any]:
    return read_json(run.checkpoints / "index.json") or {}


def test_the_newest_healthy_ones_stay(run: RunDir) -> None:
    save(run, 1, 2, 3, 4, 5)
    assert steps(run) == [3, 4, 5]
    newest = [f"step_{step:08d}" for step in (5, 4, 3)]
    assert index(run) == {"last": newest[0], "best": None, "healthy": newest}


def test_a_sick_run_evicts_nothing_healthy(run: RunDir) -> None:
    """However often it saves: its last state stays as evidence, and that alone."""
    save(run, 1, 2, 3)
    save(run, *range(4, 30), healthy=False)
    assert steps(run) == [1, 2, 3, 29]
    assert index(run)["last"] == "step_00000029"
    assert index(run)["healthy"] == ["step_00000003", "step_00000002", "step_00000001"]
    restored = CheckpointStore(run).newest("cpu")
    assert restored is not None
    assert restored.manifest["step"] == 3


def test_evidence_stays_when_the_run_recovers(run: RunDir) -> None:
    save(run, 1, 2, healthy=False)
    save(run, 3, 4, 5, 6)
    assert steps(run) == [2, 4, 5, 6]


@pytest.mark.parametrize(("direction", "best"), [("higher", 2), ("lower", 4)])
def test_the_best_stays_however_old(run: RunDir, direction: str, best: int) -> None:
    """Of equals the earlier; an evaluation of a sick state is none."""
    for step, value in enumerate([3.0, 5.0, 5.0, 1.0, 2.0, 2.0, 2.0, 2.0, 2.0], start=1):
        save(run, step, score=(direction, value))
    save(run, 10, healthy=False, score=(direction, 100.0 if direction == "higher" else -100.0))
    assert steps(run) == [best, 7, 8, 9, 10]
    assert index(run)["best"] == f"step_{best:08d}"


def test_what_signals_leave_does_not_take_the_place_of_the_cadence(run: RunDir) -> None:
    """What a rollback finds is what it finds in a run that no signal stopped."""
    save(run, 10, 20, 30, 40)
    save(run, 41, 42, 43, 44, scheduled=False)
    assert steps(run) == [20, 30, 40, 42, 43, 44]
    restored = CheckpointStore(run).newest("cpu", scheduled_until=35)
    assert restored is not None
    assert restored.manifest["step"] == 30


def test_a_sick_state_does_not_replace_the_healthy_one_of_its_step(run: RunDir) -> None:
    save(run, 1)
    with pytest.raises(CheckpointError, match="is healthy and stays"):
        save(run, 1, healthy=False)
    save(run, 2, healthy=False)
    save(run, 2)  # the other way round it does
    assert index(run)["healthy"] == ["step_00000002", "step_00000001"]


def test_a_damaged_checkpoint_is_left_to_be_looked_at(run: RunDir) -> None:
    save(run, 1, 2)
    (run.checkpoint(1) / "manifest.json").write_text("{}")
    save(run, 3, 4, 5)
    assert steps(run) == [1, 3, 4, 5]


def test_going_back_takes_later_ones_out_of_the_index(run: RunDir) -> None:
    for step, value in enumerate([1.0, 2.0, 3.0], start=1):
        save(run, step, score=("higher", value))
    CheckpointStore(run).forget_after(2)
    assert steps(run) == [1, 2]
    assert index(run) == {
        "last": "step_00000002",
        "best": "step_00000002",
        "healthy": ["step_00000002", "step_00000001"],
    }


def test_no_reader_meets_half_a_checkpoint_that_is_removed(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    """Killed while it removes the files: the name was gone before, and the next start removes the rest."""
    save(run, 1, 2)
    with monkeypatch.context() as patched:
        patched.setattr(shutil, "rmtree", lambda *_, **__: None)
        discard(run.checkpoint(1))
    assert steps(run) == [2]
    assert len(list(run.checkpoints.glob(".*"))) == 1
    restored = CheckpointStore(run).newest("cpu")
    assert restored is not None
    assert restored.refused == ()
    CheckpointStore(run).clean_up()
    assert not list(run.checkpoints.glob(".*"))


def test_names_that_are_not_the_trainers_are_nobodys(run: RunDir) -> None:
    """A repaired copy lies beside its original; no index lists it and no resume takes it."""
    save(run, 1)
    shutil.copytree(run.checkpoint(1), run.checkpoints / "step_00000009_FIXED")
    save(run, 2, 3, 4)
    assert read_checkpoint(run.checkpoints / "step_00000009_FIXED")[1]["step"] == 1
    assert index(run)["last"] == "step_00000004"
