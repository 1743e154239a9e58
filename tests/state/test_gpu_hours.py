"""GPU-hours: over all attempts, of what a run was given; nothing where there was no GPU."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from hpcstab.rundir import RunDir, create_run_dir, write_json
from hpcstab.state.evidence import Evidence
from hpcstab.state.gpu_hours import gpu_hours
from hpcstab.state.ledger import Job, Ledger, Resources

HOUR = 3600.0
NOW = 100 * HOUR


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    return create_run_dir(tmp_path / "runs", "swae3d", "before", 3, "abcdef0123")


def attempt(number: int, start_h: float, end_h: float | None, **more: Any) -> dict[str, Any]:
    return {"attempt": number, "start": start_h * HOUR, "end": None if end_h is None else end_h * HOUR, **more}


def hours_of(
    run: RunDir, *attempts: dict[str, Any], heartbeat_h: float | None = None, running: bool = False, gpus: int = 1
) -> float | None:
    for one in attempts:
        write_json(run.attempt_json(one["attempt"]), one)
    resources = Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=gpus, devices=None, time_limit_s=60)
    ledger = Ledger(
        campaign="swae3d_20260101_000000",
        cluster="lab",
        executor="slurm",
        created=0.0,
        request=[],
        resources=resources,
        owner=None,
        jobs=[Job(index=0, run_id=run.run_id)],
    )
    newest = attempts[-1] if attempts else None
    status = None if heartbeat_h is None else {"attempt": len(attempts), "time": heartbeat_h * HOUR}
    seen = Evidence(run, ledger, ledger.jobs[0], newest, status, alive=None, problem=None)
    return gpu_hours(seen, running, NOW)


def test_all_attempts_count_and_the_queue_between_them_does_not(run: RunDir) -> None:
    first = attempt(1, 1, 3, devices=["0", "1"])
    assert hours_of(run, first, attempt(2, 10, 11, devices=["3"])) == pytest.approx(2 * 2 + 1)


def test_an_attempt_that_does_not_say_had_what_its_campaign_asked_for(run: RunDir) -> None:
    assert hours_of(run, attempt(1, 1, 2), gpus=4) == pytest.approx(4)


@pytest.mark.parametrize("devices", [[], None])
def test_without_a_gpu_there_is_no_figure(run: RunDir, devices: list[str] | None) -> None:
    one = attempt(1, 1, 2) if devices is None else attempt(1, 1, 2, devices=devices)
    assert hours_of(run, one, gpus=0) is None
    assert hours_of(run) is None, "and none before the first attempt"


def test_one_without_an_end(run: RunDir) -> None:
    open_one = attempt(1, 90, None, devices=["0"])
    assert hours_of(run, open_one, heartbeat_h=99.9, running=True) == pytest.approx(10), "it runs: to now"
    assert hours_of(run, open_one, heartbeat_h=92) == pytest.approx(2), "to its last heartbeat"
    assert hours_of(run, open_one) == 0, "it had a GPU, nobody knows for how long"


def test_a_killed_one_that_another_followed_counts_to_its_last_event(run: RunDir) -> None:
    events = [{"attempt": 1, "time": 11 * HOUR}, {"attempt": 1, "time": 14 * HOUR}, {"attempt": 2, "time": 60 * HOUR}]
    run.events_jsonl.write_text("".join(json.dumps(event) + "\n" for event in events) + "[1]\n")
    killed = attempt(1, 10, None, devices=["0"])
    assert hours_of(run, killed, attempt(2, 60, 61, devices=["0"]), heartbeat_h=61) == pytest.approx(4 + 1)
    run.events_jsonl.write_text("{\n")
    assert hours_of(run, killed, attempt(2, 60, 61, devices=["0"])) == pytest.approx(1), "what is damaged adds nothing"


def test_a_damaged_attempt_hides_no_other(run: RunDir) -> None:
    newest = attempt(2, 60, 61, devices=["0"])
    run.attempt_json(1).write_text("{")
    assert hours_of(run, newest) == pytest.approx(1)


def test_the_first_attempt_is_read_from_no_other_file(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("hpcstab.state.gpu_hours.read_json", lambda path: pytest.fail(f"read {path}"))
    assert hours_of(run, attempt(1, 1, 2, devices=["0"])) == pytest.approx(1)
