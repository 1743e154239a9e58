"""What a run is doing, from every combination of what was written and what lives; absence decides nothing."""

from __future__ import annotations

import json
import math
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from hpcstab.launch.ledger import write_ledger
from hpcstab.launch.queue import run_state, run_states
from hpcstab.rundir import RunDir, begin_attempt, create_run_dir, end_attempt, write_json
from hpcstab.state.evidence import Evidence
from hpcstab.state.ledger import Job, Ledger, Resources, ledger_path
from hpcstab.state.process import Process
from hpcstab.state.rule import answer

NOW = 1_000_000.0


@pytest.fixture
def run(root: Path) -> RunDir:
    run = create_run_dir(root, "swae3d", "before", 3, "abcdef0123")
    write_json(run.run_json, {"run_id": run.run_id, "compare": {"primary": "psnr"}})
    return run


@pytest.fixture(scope="module")
def dead() -> Iterator[Process]:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE)
    process = Process.of(child.pid)
    child.communicate()
    yield process


def ledger_of(run: RunDir, process: Process | None = None, cancelled_at: float | None = None, **more: Any) -> Ledger:
    job = Job(index=0, run_id=run.run_id, process=process, cancelled_at=cancelled_at)
    resources = Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=0, devices=None, time_limit_s=60)
    values: dict[str, Any] = {"owner": Process.current(), "request": [], "created": NOW, **more}
    campaign = "swae3d_20260101_000000"
    return Ledger(campaign=campaign, cluster="local", executor="local", resources=resources, jobs=[job], **values)


ALIVE, DEAD, ELSEWHERE = True, False, None
OPEN_ATTEMPT = {"attempt": 2, "start": NOW - 100, "end": None, "node": "n1"}


def ended(reason: str) -> dict[str, Any]:
    return {**OPEN_ATTEMPT, "end": NOW - 5, "reason": reason}


def status(state: str, attempt: int = 2, silent_s: float = 1.0) -> dict[str, Any]:
    return {"state": state, "attempt": attempt, "time": NOW - silent_s}


@pytest.mark.parametrize(
    ("attempt", "written", "alive", "cancelled", "expected"),
    [
        # the trainer's own word stands
        (OPEN_ATTEMPT, status("completed"), DEAD, False, "completed"),
        (ended("diverged"), status("diverged"), None, False, "diverged"),
        (ended("failed"), status("failed"), None, True, "failed"),
        (None, status("completed", attempt=1), None, False, "completed"),
        (OPEN_ATTEMPT, status("completed"), ELSEWHERE, False, "completed"),
        # but not before its process has ended: its last files may not be written yet
        (OPEN_ATTEMPT, status("completed"), ALIVE, False, "running"),
        # a resumed run still has the status of its earlier attempt
        (OPEN_ATTEMPT, status("completed", attempt=1), ALIVE, False, "running"),
        (OPEN_ATTEMPT, status("completed", attempt=1), DEAD, False, "lost"),
        # the attempt's record, where the trainer could not say it
        (ended("completed"), None, None, False, "completed"),
        (ended("failed"), status("running"), None, False, "failed"),
        (ended("SIGTERM"), status("running"), None, False, "stopped"),
        (ended("SIGTERM"), status("running"), None, True, "cancelled"),
        (ended("time_limit"), status("running"), None, False, "timeout"),
        # the process
        (OPEN_ATTEMPT, status("running"), ALIVE, False, "running"),
        (OPEN_ATTEMPT, status("running", silent_s=900), ALIVE, False, "running"),
        (OPEN_ATTEMPT, None, ALIVE, False, "running"),
        (OPEN_ATTEMPT, status("running"), DEAD, False, "lost"),
        (OPEN_ATTEMPT, status("running"), DEAD, True, "cancelled"),
        # on another machine there is only the heartbeat, and its absence is no death
        (OPEN_ATTEMPT, status("running"), ELSEWHERE, False, "running"),
        (OPEN_ATTEMPT, status("running", silent_s=900), ELSEWHERE, False, "unknown"),
        (OPEN_ATTEMPT, None, ELSEWHERE, False, "unknown"),
        # no attempt yet
        (None, None, ALIVE, False, "queued"),
        (None, None, ALIVE, True, "queued"),
        (None, None, DEAD, False, "lost"),
        (None, None, DEAD, True, "cancelled"),
        (None, None, ELSEWHERE, False, "unknown"),
    ],
)
def test_the_state_of_a_run(
    run: RunDir,
    attempt: dict[str, Any] | None,
    written: dict[str, Any] | None,
    alive: bool | None,
    cancelled: bool,
    expected: str,
) -> None:
    ledger = ledger_of(run, Process.current(), cancelled_at=NOW - 10 if cancelled else None)
    seen = Evidence(run, ledger, ledger.jobs[0], attempt, written, alive, problem=None)
    found = answer(seen, NOW)
    assert found.state == expected
    assert found.time <= NOW
    assert found.source in ("status.json", "attempts/002.json", "process", "ledger")


def test_a_request_before_a_resumed_attempt_is_not_for_it(run: RunDir) -> None:
    ledger = ledger_of(run, Process.current(), cancelled_at=OPEN_ATTEMPT["start"] - 50)
    seen = Evidence(run, ledger, ledger.jobs[0], OPEN_ATTEMPT, None, DEAD, problem=None)
    assert answer(seen, NOW).state == "lost"


def test_silence_of_a_living_process_is_said(run: RunDir) -> None:
    seen = Evidence(run, None, None, OPEN_ATTEMPT, status("running", silent_s=300), ALIVE, problem=None)
    assert answer(seen, NOW).detail == "no heartbeat for 300 s"


def test_a_start_that_takes_long_is_no_silence(run: RunDir) -> None:
    """xray2ctpa fits its autoencoder before step 0; status said that it gave no sign of life."""
    long_ago = {**OPEN_ATTEMPT, "start": NOW - 300}
    for written in (None, status("running", attempt=1)):
        seen = Evidence(run, None, None, long_ago, written, ALIVE, problem=None)
        assert (answer(seen, NOW).state, answer(seen, NOW).detail) == ("running", "starts, for 300 s")


def test_a_job_that_is_not_started_lives_with_its_starter(run: RunDir, dead: Process) -> None:
    assert state_with(run, ledger_of(run)) == "queued"
    assert state_with(run, ledger_of(run, owner=dead)) == "lost"
    assert state_with(run, ledger_of(run, owner=dead, cancelled_at=NOW)) == "cancelled"
    assert state_with(run, ledger_of(run, dead)) == "lost"


def state_with(run: RunDir, ledger: Ledger) -> str:
    root = run.path.parents[2]
    write_ledger(ledger_path(root, ledger.campaign), ledger)
    (state,) = run_states(root, ledger.campaign)
    assert [state] == [found for found in run_states(root) if found.run_id == state.run_id] or state.age_s >= 0
    return state.state


def test_a_run_that_nobody_knows_anything_of(run: RunDir) -> None:
    state = run_state(run)
    assert (state.state, state.campaign, state.seed, state.step) == ("unknown", None, 3, None)
    assert "no attempt was recorded" in str(state.detail)


def test_the_figures_of_a_run(run: RunDir) -> None:
    begin_attempt(run, {"node": "n1", "process": Process.current().model_dump()})
    start = json.loads(run.attempt_json(1).read_text())["start"]
    metric = {"name": "psnr", "unit": "dB", "direction": "higher", "about": ""}
    write_json(run.task_json, {"metrics": [{**metric, "name": "ratio", "unit": ""}, metric]})
    written = {
        "state": "running", "step": 100, "total_steps": 400, "update": 100, "time": start + 50.0, "attempt": 1,
        "last": {"loss": "nan", "grad_norm": "inf", "lr": 0.1, "step_time_s": 9.0},
        "best": {"metric": "psnr", "value": 13.0, "step": 50}, "eval": {"psnr": 12.5, "ratio": 32},
    }  # fmt: skip
    write_json(run.status_json, written)
    state = run_state(run)
    assert (state.state, state.step, state.total_steps, state.attempt, state.node) == ("running", 100, 400, 1, "n1")
    assert (state.metric, state.value, state.unit) == ("psnr", 12.5, "dB")
    assert math.isnan(state.loss or 0.0)
    assert state.grad_norm == math.inf
    assert state.eta_s == pytest.approx(150.0), "by the pace of the whole attempt, not of the last step"
    assert (state.as_json()["loss"], state.as_json()["grad_norm"]) == ("nan", "inf")
    json.dumps(state.as_json(), allow_nan=False)
    write_json(run.status_json, {**written, "best": None, "eval": {"psnr": "nan", "ratio": 32}})
    assert run_state(run).metric == "psnr", "never finite: then run.json says which metric is primary"


@pytest.mark.parametrize("content", ["", "{", "[1]", '{"state": ["x"], "last": 3, "best": 5, "eval": [], "time": "x"}'])
def test_a_damaged_status_hides_neither_its_run_nor_another(run: RunDir, root: Path, content: str) -> None:
    number = begin_attempt(run, {"node": "n1", "process": Process.current().model_dump()})
    end_attempt(run, number, "completed", 6)
    run.status_json.write_text(content)
    whole = create_run_dir(root, "swae3d", "after", 0, "0" * 8)
    write_json(whole.run_json, {})
    write_json(whole.status_json, {"state": "completed", "attempt": 1, "time": time.time()})
    damaged = next(state for state in run_states(root) if state.run_id == run.run_id)
    assert damaged.state == "completed", "the attempt says so"
    assert (damaged.problem is None) == (content.startswith('{"'))
    assert [state.state for state in run_states(root)] == ["completed", "completed"]


def test_a_damaged_attempt_is_unknown_and_said(run: RunDir) -> None:
    run.attempt_json(1).write_text("{")
    state = run_state(run)
    assert state.state == "unknown"
    assert "001.json" in str(state.problem)


def test_a_removed_folder_is_lost_to_its_campaign(run: RunDir, root: Path) -> None:
    ledger = ledger_of(run, Process.current())
    write_ledger(ledger_path(root, ledger.campaign), ledger)
    run.path.rename(root / "away")
    (state,) = run_states(root, ledger.campaign)
    assert (state.state, state.detail) == ("lost", "its folder was removed")
    assert run_states(root) == []
