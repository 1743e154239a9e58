"""Resumed = uninterrupted, bit for bit, for every model and from anywhere; damage walks back."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import CheckpointStore, read_checkpoint
from hpcstab.config import load_experiment, resolve
from hpcstab.errors import CheckpointError
from hpcstab.execute import execute
from hpcstab.metrics import read_evals, read_events, read_history, read_rows
from hpcstab.rundir import RunDir, begin_attempt, read_json
from tests.conftest import MODELS, MakeRun

VARIANTS = [(model, variant) for model in MODELS for variant in ("before", "after", "cured")]
CLOCKS = ("attempt", "time_s", "step_time_s", "peak_mem_gib", "seconds")


def attempt(run: RunDir, stop_after: int | None = None, *, dies: bool = False) -> str:
    """One attempt at the run; after so many turns of the loop a signal asks it to stop, or it dies there."""
    turns = iter(range(10**9))

    def stop_requested() -> str | None:
        if stop_after is None or next(turns) < stop_after:
            return None
        if dies:
            raise KeyboardInterrupt
        return "SIGUSR2"

    try:
        return execute(run, begin_attempt(run, {}), stop_requested).state
    except KeyboardInterrupt:
        return "dead"


def numbers(rows: list[dict[str, str]]) -> list[dict[str, str]]:
    return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in rows]


def final_state(run: RunDir) -> dict[str, Any]:
    status = read_json(run.status_json)
    assert status is not None
    return read_checkpoint(run.checkpoint(status["step"]))[0]


def equal(first: Any, second: Any) -> bool:
    if isinstance(first, torch.Tensor):  # a diverged run ends with NaN, and so does its continuation
        alike = first.shape == second.shape and first.dtype == second.dtype
        return alike and torch.allclose(first, second, rtol=0, atol=0, equal_nan=True)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(equal(first[key], second[key]) for key in first)
    if isinstance(first, (list, tuple)):
        return len(first) == len(second) and all(map(equal, first, second))
    return bool(first == second)


def assert_as_if_nothing_had_happened(whole: RunDir, parts: RunDir) -> None:
    """All that a reader of the run finds, and the state to the last bit; what differs is the count of attempts."""
    states = [final_state(run) for run in (whole, parts)]
    for part in states[0].keys() - {"status"}:  # which has the time of a step
        assert equal(states[0][part], states[1][part]), part
    histories = [numbers(list(read_history(run.metrics_csv).values())) for run in (whole, parts)]
    assert histories[0] == histories[1]
    assert numbers(read_evals(whole.evals_csv)) == numbers(read_evals(parts.evals_csv))
    statuses = [read_json(run.status_json) or {} for run in (whole, parts)]
    for key in ("state", "step", "best", "eval", "first_nonfinite_step", "judgement"):
        assert statuses[0][key] == statuses[1][key], key
    best = [(read_json(run.checkpoints / "index.json") or {})["best"] for run in (whole, parts)]
    assert best[0] == best[1]


def assert_was_sick_at_its_stop(whole: RunDir, parts: RunDir) -> None:
    """What a stop saves is looked at: a state that is not finite by then ends the run there, and rightly so."""
    ends = [read_json(run.status_json) or {} for run in (whole, parts)]
    assert ends[0]["state"] == "diverged"
    assert ends[0]["first_nonfinite_step"] == ends[1]["first_nonfinite_step"] < ends[1]["step"]
    both = zip(*(read_history(run.metrics_csv).values() for run in (whole, parts)), strict=False)
    assert all(first == second for first, second in (numbers(list(rows)) for rows in both))


@pytest.mark.parametrize(("model", "variant"), VARIANTS)
def test_resumed_is_uninterrupted_bit_for_bit(make_run: MakeRun, model: str, variant: str) -> None:
    """Stopped before the last step, and after the first and again and again; however short the training is."""
    whole = make_run(model, variant)
    expected = attempt(whole)
    num_steps = len(read_history(whole.metrics_csv))
    for stops in ([num_steps - 1], [1] * min(3, num_steps - 1)):
        parts = make_run(model, variant)
        for stop_after in stops:
            ended = attempt(parts, stop_after)
            if ended == "diverged":
                assert_was_sick_at_its_stop(whole, parts)
                break
            assert ended == "stopped"
        else:
            assert attempt(parts) == expected
            assert_as_if_nothing_had_happened(whole, parts)


ALL_AT_ONCE = [
    "trainer.max_steps=10",
    "trainer.checkpoint_every={steps: 3}",
    "trainer.evaluate_every={steps: 4}",
    "trainer.micro_batches=2",
    "trainer.ema_decay=0.9",
    "scheduler={name: cosine, warmup: {steps: 3}, min_lr_fraction: 0.1}",
]


@pytest.mark.parametrize("model", MODELS)
def test_every_checkpoint_of_a_training_leads_to_the_same_end(make_run: MakeRun, model: str) -> None:
    """Gate, guards, gradient accumulation, moving average and scheduler; stopped, dead, and with damaged checkpoints.

    Every attempt goes on from another kind of checkpoint: of the cadence, of a best evaluation, of a signal, and
    the one before a damaged one.
    """
    settings = [*ALL_AT_ONCE, phase_of_a_term(model)]
    whole, parts = (make_run(model, "cured", settings=settings) for _ in range(2))
    assert attempt(whole) == "completed"
    assert attempt(parts, 4, dies=True) == "dead"
    assert attempt(parts, 2) == "stopped"
    damage_newest(parts)
    assert attempt(parts, 5, dies=True) == "dead"
    damage_newest(parts)
    assert attempt(parts, 3) == "stopped"
    assert attempt(parts) == "completed"
    assert_as_if_nothing_had_happened(whole, parts)
    resumed = [event["step"] for event in read_events(parts.events_jsonl) if event["kind"] == "resumed"]
    assert len(resumed) == 4
    refused = [event for event in read_events(parts.events_jsonl) if event["kind"] == "checkpoint_refused"]
    assert len({event["data"]["reason"] for event in refused}) == 2  # one that is still there is refused again


def phase_of_a_term(model: str) -> str:
    """A setting by which the last loss term comes on in step 5, over three steps."""
    config = resolve(load_experiment(model), "cured", "tiny").config
    term = list(config.losses.weights.model_dump())[-1]
    return f"losses.phases={{{term}: {{start: {{steps: 5}}, ramp: {{steps: 3}}}}}}"


def damage_newest(run: RunDir) -> None:
    flip(max(run.checkpoints.glob("step_[0-9]*")) / "state.pt")


def test_a_killed_attempt_goes_on_from_its_last_checkpoint(make_run: MakeRun) -> None:
    """A crash between checkpoints: the rows after the checkpoint are written again, and count once."""
    whole, run = make_run(variant="cured"), make_run(variant="cured")
    attempt(whole)
    assert attempt(run, 5, dies=True) == "dead"
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
    with pytest.raises(CheckpointError, match="none of 4 checkpoints passes"):
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


def test_the_newest_and_the_best_are_kept(make_run: MakeRun) -> None:
    """And the index names what status.json calls the best."""
    settings = ["trainer.checkpoint_every={steps: 1}", "trainer.evaluate_every={steps: 1}", "trainer.max_steps=8"]
    run = make_run(variant="after", settings=settings)
    attempt(run)
    status = read_json(run.status_json)
    assert status is not None
    best = status["best"]["step"]
    names = {step: run.checkpoint(step).name for step in (best, 6, 7, 8)}
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == sorted(set(names.values()))
    index = read_json(run.checkpoints / "index.json")
    assert index == {"last": names[8], "best": names[best], "healthy": sorted(set(names.values()), reverse=True)}


def test_an_older_attempt_stops_before_its_next_checkpoint(make_run: MakeRun) -> None:
    """A requeued job whose first process lives on: the newer attempt owns the files."""
    run = make_run(settings=["trainer.checkpoint_every={steps: 2}"])

    def newer_attempt_begins() -> str | None:
        if len(read_history(run.metrics_csv)) == 3 and len(run.attempt_numbers()) == 1:
            begin_attempt(run, {})
        return None

    result = execute(run, begin_attempt(run, {}), newer_attempt_begins)
    assert (result.state, result.reason) == ("stopped", "superseded")
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == ["step_00000002", "step_00000003"]


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
