"""Whole campaigns on a real Slurm: submitted, watched, requeued, cancelled, reported."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from hpcstab.campaign import plan
from hpcstab.config import parse_overrides
from hpcstab.launch.cancel import cancel
from hpcstab.launch.clusters import Cluster, choose_cluster, load_cluster, refuse_unusable
from hpcstab.launch.ledger import Ledger, ledger_path, read_ledger, submission_folder
from hpcstab.launch.queue import run_states
from hpcstab.launch.scheduler import job_state, partition_limits
from hpcstab.launch.submit import shown_script, submit
from hpcstab.report import write_report
from hpcstab.rundir import RunDir, find_runs, read_attempts
from tests.slurm.conftest import Lab, refusal, wait_for, wait_for_end

pytestmark = pytest.mark.slurm

NUM_STEPS = 1_000
SLOW_STEPS = 3_000
FOR_EVER = 100_000


def lab_cluster(**changes: object) -> Cluster:
    """The shipped cluster ``lab``; ``partition=...`` changes its section slurm."""
    cluster = load_cluster("lab")
    assert cluster.slurm is not None
    of_slurm = {key: value for key, value in changes.items() if key in type(cluster.slurm).model_fields}
    rest = {key: value for key, value in changes.items() if key not in of_slurm}
    return cluster.model_copy(update={**rest, "slurm": cluster.slurm.model_copy(update=of_slurm)})


def submit_runs(root: Path, seeds: list[int], num_steps: int, **changes: object) -> Ledger:
    """``after`` at scale tiny, evaluated seldom."""
    settings = [f"trainer.max_steps={num_steps}"]
    settings += [f"trainer.{what}_every={{steps: {num_steps}}}" for what in ("evaluate", "checkpoint", "probe")]
    planned = plan(["swae3d"], ["after"], seeds, "tiny", parse_overrides(settings))
    return submit(planned, "swae3d", lab_cluster(**changes), root)


def run_of(root: Path, ledger: Ledger, index: int = 0) -> RunDir:
    return RunDir(root / ledger.jobs[index].run_id)


def job_of(ledger: Ledger, index: int = 0) -> str:
    job_id = ledger.jobs[index].job_id
    assert job_id is not None
    return job_id


def wait_for_steps(run: RunDir, num_steps: int, patience_s: float = 90) -> None:
    def enough() -> bool:
        return run.metrics_csv.exists() and len(run.metrics_csv.read_text().splitlines()) > num_steps

    wait_for(enough, f"{num_steps} steps of {run.run_id}", patience_s)


def final_weights(run: RunDir) -> dict[str, torch.Tensor]:
    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    network: dict[str, torch.Tensor] = torch.load(newest / "state.pt", weights_only=True)["network"]
    return network


def test_nine_runs_are_submitted_watched_and_reported(lab: Lab, root: Path, tmp_path: Path) -> None:
    assert choose_cluster(None).name == "lab", "Slurm answers here, and there is a YAML of its name"
    options = ["swae3d", "--scale", "tiny", "--seeds", "0-2", "--root", str(root)]
    done = subprocess.run(
        [sys.executable, "-m", "hpcstab", "submit", *options], capture_output=True, text=True, timeout=60, check=True
    )
    campaign = re.search(r"hpcstab status (\S+)", done.stdout)
    assert campaign is not None
    ledger = read_ledger(ledger_path(root, campaign[1]))
    assert [job.job_id for job in ledger.jobs] == [f"{job_of(ledger).split('_')[0]}_{i}" for i in range(9)]
    ended = wait_for_end(root, ledger.campaign, 240)
    assert {state.state for state in ended} <= {"completed", "diverged"}
    for state in ended:
        (attempt,) = read_attempts(RunDir(root / state.run_id))
        assert attempt["job_id"] in {job.job_id for job in ledger.jobs}
        assert (attempt["node"], attempt["restart_count"]) in {("n1", 0), ("n2", 0)}
    report = write_report([RunDir(root / state.run_id) for state in ended], tmp_path / "report")
    assert report is not None
    assert (tmp_path / "report").is_dir()


def test_a_requeued_run_ends_as_an_uninterrupted_one(lab: Lab, root: Path) -> None:
    whole = submit_runs(root / "whole", [0], NUM_STEPS)
    assert [state.state for state in wait_for_end(root / "whole", whole.campaign, 120)] == ["completed"]
    cut = submit_runs(root / "cut", [0], NUM_STEPS)
    run, job = run_of(root / "cut", cut), job_of(cut)
    wait_for_steps(run, 20)
    lab.verb("requeue", job)
    wait_for(lambda: run_states(root / "cut")[0].state == "queued", "the hold after a requeue", 30)
    assert re.match(r"restarts at \d\d:\d\d, attempt 1: SIGTERM", run_states(root / "cut")[0].detail or "")
    lab.verb("release", job)
    assert [state.state for state in wait_for_end(root / "cut", cut.campaign, 120)] == ["completed"]
    first, second = read_attempts(run)
    assert (first["reason"], second["reason"]) == ("SIGTERM", "completed")
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert 0 < second["steps_gained"] < NUM_STEPS
    expected, weights = final_weights(run_of(root / "whole", whole)), final_weights(run)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def assert_resumed_to_the_end(root: Path, ledger: Ledger, reason: str) -> None:
    """After a release: the run ends in its second attempt, and no step was trained twice or left out."""
    assert [state.state for state in wait_for_end(root, ledger.campaign, 120)] == ["completed"]
    first, second = read_attempts(run_of(root, ledger))
    assert (first["reason"], second["reason"], second["restart_count"]) == (reason, "completed", 1)
    assert 0 < first["steps_gained"] < SLOW_STEPS
    assert first["steps_gained"] + second["steps_gained"] == SLOW_STEPS


def test_near_its_time_limit_a_run_queues_itself_again(lab: Lab, root: Path) -> None:
    ledger = submit_runs(root, [0], SLOW_STEPS, time_limit_min=1, signal_lead_s=30)
    run, job = run_of(root, ledger), job_of(ledger)
    wait_for(lambda: run_states(root)[0].state == "queued" and run.attempt_numbers() == [1], "the requeue", 90)
    assert re.match(r"restarts at \d\d:\d\d, attempt 1: SIGUSR2", run_states(root)[0].detail or "")
    printed = (submission_folder(ledger_path(root, ledger.campaign)) / f"{job}_0_log.out").read_text()
    assert "s left: queued again" in printed
    lab.verb("release", job)
    wait_for(lambda: run.attempt_numbers() == [1, 2], "the second attempt", 60)
    cancel(run.run_id, root)
    assert [state.state for state in wait_for_end(root, ledger.campaign, 60)] == ["cancelled"]


@pytest.mark.parametrize("partition", ["preempt", "preempt-grace"])
def test_a_preempted_run_resumes(lab: Lab, root: Path, partition: str) -> None:
    ledger = submit_runs(root, [0], SLOW_STEPS, partition=partition)
    run, job = run_of(root, ledger), job_of(ledger)
    wait_for_steps(run, 20)
    lab.verb("preempt", job)
    wait_for(lambda: run_states(root)[0].state == "queued", "its place in the queue", 60)
    assert re.match(r"restarts at \d\d:\d\d, attempt 1: SIGTERM", run_states(root)[0].detail or "")
    lab.verb("release", job)
    assert_resumed_to_the_end(root, ledger, "SIGTERM")


def test_cancel_ends_a_running_and_a_queued_run(lab: Lab, root: Path) -> None:
    ledger = submit_runs(root, [0, 1, 2], FOR_EVER, max_parallel=1)
    wait_for_steps(run_of(root, ledger), 3)
    assert [state.state for state in run_states(root, ledger.campaign)] == ["running", "queued", "queued"]
    assert run_states(root, ledger.campaign)[1].detail == "waits for earlier runs of its campaign"
    outcomes = [result.outcome for result in cancel(ledger.campaign, root)]
    assert [outcome.split(" (")[0] for outcome in outcomes] == ["asked to stop"] + ["taken from the queue"] * 2
    assert [state.state for state in wait_for_end(root, ledger.campaign, 60)] == ["cancelled"] * 3
    (attempt,) = read_attempts(run_of(root, ledger))
    assert attempt["reason"] == "SIGTERM"
    assert attempt["steps_gained"] > 0
    assert sorted(run_of(root, ledger).checkpoints.glob("step_*"))


def test_scancel_by_hand_ends_cancelled(lab: Lab, root: Path) -> None:
    from hpcstab.launch.scheduler import cancel_jobs

    ledger = submit_runs(root, [0], FOR_EVER)
    wait_for_steps(run_of(root, ledger), 3)
    cancel_jobs([job_of(ledger)])
    (state,) = wait_for_end(root, ledger.campaign, 60)
    assert state.state == "cancelled"
    wait_for(lambda: job_state(job_of(ledger)) in ("CANCELLED", None), "the job to be gone", 30)


def test_the_dry_run_shows_the_script_that_is_submitted(lab: Lab, root: Path) -> None:
    shown = shown_script(root, "swae3d", lab_cluster(), 2)
    ledger = submit_runs(root, [0, 1], FOR_EVER)
    (script,) = submission_folder(ledger_path(root, ledger.campaign)).glob("*_submission.sh")
    assert script.read_text() == shown.replace("swae3d_YYYYMMDD_HHMMSS", ledger.campaign)
    for line in ("array=0-1%2", "gres=gpu:a100:1", "account=bcqs-delta-gpu", "requeue", "open-mode=append"):
        assert f"#SBATCH --{line}\n" in shown
    cancel(ledger.campaign, root)
    wait_for_end(root, ledger.campaign, 60)


def test_what_slurm_would_queue_for_ever_is_refused(lab: Lab, root: Path) -> None:
    assert refusal(lambda: refuse_unusable(lab_cluster(partition="nope")))[0] == 2
    code, message = refusal(lambda: submit_runs(root, [0], 6, time_limit_min=3 * 24 * 60))
    assert (code, "is more than partition 'gpuA100x4' allows (2880)" in message) == (2, True)
    code, message = refusal(lambda: submit_runs(root, [0], 6, account="nobodys"))
    assert code == 2
    assert "account" in message
    assert find_runs(root) == []
    limits = partition_limits("preempt")
    assert limits is not None
    assert limits.time_limit_min == 2880
