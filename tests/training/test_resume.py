"""Resumed = uninterrupted, bit for bit, for every model and from anywhere; damage walks back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import CheckpointStore, read_checkpoint
from hpcstab.errors import CheckpointError
from hpcstab.execute import execute
from hpcstab.metrics import read_evals, read_events, read_history, read_rows
from hpcstab.rundir import RunDir, begin_attempt, read_json
from tests.conftest import MODELS, MakeRun

VARIANTS = [(model, variant) for model in MODELS for variant in ("before", "after", "cured")]
CLOCKS = ("attempt", "time_s", "step_time_s", "peak_mem_gib", "seconds")


def attempt(run: RunDir, stop_after: int | None = None) -> str:
    """One attempt at the run; a signal asks it to stop after so many steps."""
    steps = iter(range(10**9))

    def stop_requested() -> str | None:
        return "SIGUSR2" if stop_after is not None and next(steps) >= stop_after else None

    return execute(run, begin_attempt(run, {}), stop_requested).state


def numbers(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in rows]


def final_state(run: RunDir) -> dict[str, Any]:
    status = read_json(run.status_json)
    assert status is not None
    return read_checkpoint(run.checkpoint(status["step"]))[0]


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


@pytest.mark.parametrize("stops", [[1], [3], [5], [1, 1, 2]])
@pytest.mark.parametrize(("model", "variant"), VARIANTS)
def test_resumed_is_uninterrupted_bit_for_bit(make_run: MakeRun, model: str, variant: str, stops: list[int]) -> None:
    whole, parts = make_run(model, variant), make_run(model, variant)
    expected = attempt(whole)
    for stop_after in stops:
        assert attempt(parts, stop_after) == "stopped"
    assert attempt(parts) == expected
    for part in ("network", "optimizer", "step", "update"):
        assert equal(final_state(whole)[part], final_state(parts)[part]), part
    histories = [numbers(list(read_history(run.metrics_csv).values())) for run in (whole, parts)]
    assert histories[0] == histories[1]
    assert numbers(read_evals(whole.evals_csv)) == numbers(read_evals(parts.evals_csv))
    statuses = [read_json(run.status_json) for run in (whole, parts)]
    assert statuses[0] is not None
    assert statuses[1] is not None
    for key in ("state", "step", "best", "eval", "first_nonfinite_step", "judgement"):
        assert statuses[0][key] == statuses[1][key], key


def test_a_killed_attempt_goes_on_from_its_last_checkpoint(make_run: MakeRun) -> None:
    """A crash between checkpoints: the rows after the checkpoint are written again, and count once."""
    whole, run = make_run(variant="cured"), make_run(variant="cured")
    attempt(whole)

    boundaries = iter(range(6))

    def crash() -> str | None:
        if next(boundaries) == 5:
            raise KeyboardInterrupt
        return None

    with pytest.raises(KeyboardInterrupt):
        execute(run, begin_attempt(run, {}), crash)
    assert attempt(run) == "completed"
    resumed = next(event for event in read_events(run.events_jsonl) if event["kind"] == "resumed")
    assert (resumed["step"], resumed["data"]["checkpoint"]) == (4, "step_00000004")
    rows = read_history(run.metrics_csv)
    assert [row["attempt"] for row in read_rows(run.metrics_csv)] == ["1"] * 5 + ["2"] * 2
    assert [row["attempt"] for row in rows.values()] == ["1"] * 4 + ["2"] * 2
    assert numbers(list(rows.values())) == numbers(list(read_history(whole.metrics_csv).values()))
    assert equal(final_state(whole)["network"], final_state(run)["network"])


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-7])


def flip(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(bytes(content))


@pytest.mark.parametrize("name", ["state.pt", "manifest.json"])
@pytest.mark.parametrize("damage", [truncate, flip, Path.unlink])
def test_a_damaged_checkpoint_is_refused_and_the_one_before_it_taken(
    make_run: MakeRun, name: str, damage: Callable[[Path], None]
) -> None:
    run = make_run(settings=["trainer.checkpoint_every={steps: 2}"])
    assert attempt(run, stop_after=5) == "stopped"
    damage(run.checkpoint(5) / name)
    assert attempt(run) == "completed"
    kinds = {event["kind"]: event for event in read_events(run.events_jsonl)}
    assert kinds["resumed"]["step"] == 4
    assert "step_00000005" in kinds["checkpoint_refused"]["data"]["reason"]


def test_no_sound_checkpoint_is_an_error_and_nothing_is_deleted(make_run: MakeRun) -> None:
    run = make_run(settings=["trainer.checkpoint_every={steps: 2}"])
    attempt(run, stop_after=5)
    before = sorted(run.checkpoints.iterdir())
    for folder in run.checkpoints.glob("step_*"):
        flip(folder / "state.pt")
    with pytest.raises(CheckpointError, match="none of 3 checkpoints passes"):
        attempt(run)
    assert sorted(run.checkpoints.iterdir()) == before


def test_a_diverged_run_leaves_a_checkpoint_labelled_sick(make_run: MakeRun) -> None:
    run = make_run(variant="before+first_batch_init", settings=["trainer.max_steps=30"])
    assert attempt(run) == "diverged"
    (folder,) = run.checkpoints.glob("step_*")
    _, manifest = read_checkpoint(folder)
    assert manifest["healthy"] is False
    assert manifest["nonfinite"]
    assert CheckpointStore(run).newest("cpu") is None


def test_only_the_two_newest_healthy_checkpoints_are_kept(make_run: MakeRun) -> None:
    run = make_run(variant="cured", settings=["trainer.checkpoint_every={steps: 1}"])
    attempt(run)
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == ["step_00000005", "step_00000006"]
    assert (read_json(run.checkpoints / "index.json") or {})["last"] == "step_00000006"


def test_an_older_attempt_stops_before_its_next_checkpoint(make_run: MakeRun) -> None:
    """A requeued job whose first process lives on: the newer attempt owns the files."""
    run = make_run(settings=["trainer.checkpoint_every={steps: 2}"])

    def newer_attempt_begins() -> str | None:
        if len(read_history(run.metrics_csv)) == 3 and len(run.attempt_numbers()) == 1:
            begin_attempt(run, {})
        return None

    result = execute(run, begin_attempt(run, {}), newer_attempt_begins)
    assert (result.state, result.reason) == ("stopped", "superseded")
    assert [path.name for path in run.checkpoints.glob("step_*")] == ["step_00000002"]


def test_a_checkpoint_of_another_network_is_refused(make_run: MakeRun) -> None:
    run, other = make_run(variant="before"), make_run(variant="after")
    attempt(run, stop_after=2)
    run.checkpoints.rename(other.checkpoints)
    with pytest.raises(CheckpointError, match="does not fit this network"):
        attempt(other)


def test_a_kill_during_a_save_leaves_no_aside_after_the_next_start(make_run: MakeRun) -> None:
    run = make_run()
    attempt(run, stop_after=2)
    aside = run.checkpoints / ".step_00000003.aside"
    aside.mkdir()
    (aside / "state.pt").write_bytes(b"half")
    assert attempt(run) == "completed"
    assert not list(run.checkpoints.glob(".*"))
