"""``hpcstab logs`` on a real Slurm: while a run trains, after its end, followed, and by attempt; with its GPU-hours."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import planned_runs, submit_one, submit_runs

pytestmark = pytest.mark.slurm


def logs(root: Path, *options: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcstab", "logs", "_s0_", "--root", str(root), *options]
    return subprocess.run(command, capture_output=True, text=True, timeout=90)


def test_logs_of_a_run_that_trains_is_requeued_and_followed_to_its_end(lab: Lab, root: Path) -> None:
    one = submit_one(root)
    run = one.run
    one.wait_for_steps(5)
    first_line = f"attempt 1 of {run.run_id} on "
    assert logs(root).stdout.startswith(first_line)
    lab.verb("requeue", one.job)
    one.wait_for_hold("SIGTERM")
    held = logs(root)
    assert held.returncode == 0
    assert "attempt 1 ended: SIGTERM" in held.stdout, "the newest attempt, while the job waits for its next"
    lab.verb("release", one.job)
    wait_for(lambda: run.attempt_numbers() == [1, 2], "the second attempt", 30)
    followed = logs(root, "-f")
    lines = followed.stdout.splitlines()
    assert lines[0].startswith(f"attempt 2 of {run.run_id} on ")
    assert lines[-1].startswith("attempt 2 ended: completed, "), "it goes on to the last word"
    assert followed.stderr == f"==> {run.log(2)}\n"
    ended = one.state
    spent_s = sum(attempt["end"] - attempt["start"] for attempt in one.attempts)
    assert (ended.state, ended.attempt, ended.gpu_hours) == ("completed", 2, pytest.approx(spent_s / 3600))
    assert logs(root).stdout == followed.stdout
    assert logs(root, "--attempt", "1").stdout.startswith(first_line)
    missing = logs(root, "--attempt", "3")
    assert (missing.returncode, missing.stderr) == (2, f"hpcstab: {run.run_id}: no attempt 3; there are: 1, 2\n")


def test_logs_of_a_job_that_waits_and_then_dies_before_its_attempt(lab: Lab, root: Path) -> None:
    first, second = submit_runs(root, planned_runs(2)[::-1], max_parallel=1)
    run = second.run
    first.wait_for_steps(1)
    waiting = logs(root)
    queued = f"hpcstab: {run.run_id}: printed nothing so far, it is queued: waits for earlier runs of its campaign\n"
    assert (waiting.returncode, waiting.stdout, waiting.stderr) == (3, "", queued)
    run.run_json.write_text("[]")
    assert (first.wait_for_end(), second.wait_for_end()) == ("completed", "failed")
    why = f"{run.run_json}: is not a JSON mapping"
    assert second.state.detail == f"its job ended before its first attempt: {why}"
    raw = logs(root)
    assert raw.returncode == 0
    assert f"hpcstab: {why}\n" in raw.stdout
    assert raw.stderr.endswith(f"{second.job}_0_log.out\n"), "what submitit caught"
    assert logs(root, "-f").stdout == raw.stdout, "nothing more comes"
