"""Whole campaigns on a real Slurm: submitted, watched, cancelled, reported; and what is refused."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstab.launch.cancel import cancel
from hpcstab.launch.clusters import choose_cluster, refuse_unusable
from hpcstab.launch.scheduler import job_state, partition_limits
from hpcstab.launch.submit import shown_script
from hpcstab.report import write_report
from hpcstab.rundir import RunDir, find_runs, read_attempts
from hpcstab.state.ledger import ledger_path, read_ledger, submission_folder
from tests.slurm.conftest import Lab, refusal, wait_for, wait_for_end
from tests.slurm.runs import FOR_EVER, lab_cluster, planned_runs, submit_one, submit_runs

pytestmark = pytest.mark.slurm


def test_nine_runs_are_submitted_watched_and_reported(lab: Lab, root: Path, tmp_path: Path) -> None:
    assert choose_cluster(None).name == "lab", "Slurm answers here, and there is a YAML of its name"
    options = ["swae3d", "--scale", "tiny", "--seeds", "0-2", "--root", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "hpcstab", "submit", *options], capture_output=True, text=True, timeout=60, check=True
    )
    campaign = re.search(r"hpcstab status (\S+)", done.stdout)
    assert campaign is not None
    ledger = read_ledger(ledger_path(root, campaign[1]))
    array = str(ledger.jobs[0].job_id).partition("_")[0]
    assert [job.job_id for job in ledger.jobs] == [f"{array}_{index}" for index in range(9)]
    ended = wait_for_end(root, ledger.campaign, 240)
    assert {state.state for state in ended} <= {"completed", "diverged"}
    for state in ended:
        (attempt,) = read_attempts(RunDir(root / state.run_id))
        assert attempt["job_id"] in {job.job_id for job in ledger.jobs}
        assert (attempt["node"], attempt["restart_count"]) in {("n1", 0), ("n2", 0)}
    report = write_report([RunDir(root / state.run_id) for state in ended], tmp_path / "report")
    assert report is not None
    assert (tmp_path / "report").is_dir()


def test_cancel_ends_a_running_and_a_queued_run(lab: Lab, root: Path) -> None:
    runs = submit_runs(root, planned_runs(3, FOR_EVER), max_parallel=1)
    runs[0].wait_for_steps(3)
    assert [one.state.state for one in runs] == ["running", "queued", "queued"]
    assert runs[1].state.detail == "waits for earlier runs of its campaign"
    outcomes = [result.outcome for result in cancel(runs[0].ledger.campaign, root)]
    assert [outcome.split(" (")[0] for outcome in outcomes] == ["asked to stop"] + ["taken from the queue"] * 2
    assert [one.wait_for_end(60) for one in runs] == ["cancelled"] * 3
    (attempt,) = runs[0].attempts
    assert attempt["reason"] == "SIGTERM"
    assert attempt["steps_gained"] > 0
    assert sorted(runs[0].run.checkpoints.glob("step_*"))


def test_scancel_by_hand_ends_cancelled(lab: Lab, root: Path) -> None:
    one = submit_one(root, FOR_EVER)
    one.wait_for_steps(3)
    one.scancel()
    assert one.wait_for_end(60) == "cancelled"
    wait_for(lambda: job_state(one.job) in ("CANCELLED", None), "the job to be gone", 30)


def test_the_dry_run_shows_the_script_that_is_submitted(lab: Lab, root: Path) -> None:
    shown = shown_script(root, "swae3d", lab_cluster(), 2)
    ledger = submit_runs(root, planned_runs(2, FOR_EVER))[0].ledger
    (script,) = submission_folder(ledger_path(root, ledger.campaign)).glob("*_submission.sh")
    assert script.read_text() == shown.replace("swae3d_YYYYMMDD_HHMMSS", ledger.campaign)
    for line in ("array=0-1%2", "gres=gpu:a100:1", "account=bcqs-delta-gpu", "requeue", "open-mode=append"):
        assert f"#SBATCH --{line}\n" in shown
    cancel(ledger.campaign, root)
    wait_for_end(root, ledger.campaign, 60)


def test_what_slurm_would_queue_for_ever_is_refused(lab: Lab, root: Path) -> None:
    assert refusal(lambda: refuse_unusable(lab_cluster(partition="nope")))[0] == 2
    code, message = refusal(lambda: submit_one(root, time_limit_min=3 * 24 * 60))
    assert (code, "is more than partition 'gpuA100x4' allows (2880)" in message) == (2, True)
    code, message = refusal(lambda: submit_one(root, account="nobodys"))
    assert code == 2
    assert "account" in message
    assert find_runs(root) == []
    limits = partition_limits("preempt")
    assert limits is not None
    assert limits.time_limit_min == 2880
