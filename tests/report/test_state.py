"""``status`` and the report say the same about a run, without a scheduler: what it last said is written down."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from hpcstab.launch import signals
from hpcstab.launch.ledger import write_ledger
from hpcstab.launch.queue import run_states
from hpcstab.report.load import load_runs
from hpcstab.rundir import RunDir, begin_attempt, end_attempt, write_json
from hpcstab.state.answers import Answers, JobAnswer, Scheduled, write_answers
from hpcstab.state.ledger import Job, Ledger, Resources, Slurm, ledger_path
from hpcstab.state.local import TIME_LIMIT
from tests.report.synthetic import create

CAMPAIGN = "swae3d_20261122_120000"


def write_campaign(root: Path, run: RunDir, executor: str, cancelled: bool) -> None:
    slurm = Slurm(
        cluster_name="lab",
        uid=0,
        partition="gpu",
        account=None,
        gres="gpu:1",
        constraint=None,
        cpus_per_task=1,
        mem_gib=1,
        signal_lead_s=60,
    )
    now = time.time()
    ledger = Ledger(
        campaign=CAMPAIGN,
        cluster="lab",
        executor=executor,
        slurm=slurm if executor == "slurm" else None,
        created=now - 3600,
        request=[],
        resources=Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=1, devices=None, time_limit_s=60.0),
        owner=None,
        jobs=[Job(index=0, run_id=run.run_id, job_id="5", cancelled_at=now if cancelled else None)],
    )
    write_ledger(ledger_path(root, CAMPAIGN), ledger)


@pytest.mark.parametrize(
    ("executor", "slurm_says", "reason", "cancelled", "expected"),
    [
        ("slurm", "PENDING", "SIGTERM", False, "queued"),
        ("slurm", "RUNNING", None, False, "running"),
        ("slurm", "CANCELLED", "SIGTERM", True, "cancelled"),
        ("slurm", "PREEMPTED", "SIGTERM", False, "preempted"),
        ("slurm", "TIMEOUT", "SIGUSR2", False, "timeout"),
        ("slurm", "NODE_FAIL", None, False, "lost"),
        ("slurm", "COMPLETED", "SIGTERM", False, "stopped"),
        ("slurm", None, "SIGTERM", False, "unknown"),
        ("local", None, "SIGTERM", True, "cancelled"),
        ("local", None, "SIGTERM", False, "stopped"),
        ("local", None, TIME_LIMIT, False, "timeout"),
        ("local", None, "failed", False, "failed"),
    ],
)
def test_status_and_report_agree(
    tmp_path: Path, executor: str, slurm_says: str | None, reason: str | None, cancelled: bool, expected: str
) -> None:
    run = create(tmp_path, "after", 0, (), CAMPAIGN, "quick")
    attempt = begin_attempt(run, {"node": "n1", "job_id": "5"})
    if reason is not None:
        end_attempt(run, attempt, reason, 3)
    write_json(run.status_json, {"state": "running", "step": 3, "attempt": attempt, "time": time.time() - 1})
    write_campaign(tmp_path, run, executor, cancelled)
    now = time.time()
    answer = JobAnswer("5", CAMPAIGN, slurm_says or "", None, None, "n1", "squeue")
    write_answers(tmp_path, Answers(now, None, {"5": Scheduled(answer, now)} if slurm_says else {}))
    (status,) = run_states(tmp_path)
    (loaded,), broken = load_runs([run])
    assert not broken
    assert (status.state, loaded.state) == (expected, expected)


def test_a_run_of_a_folder_that_was_copied_without_its_campaign(tmp_path: Path) -> None:
    run = create(tmp_path, "after", 0, (), CAMPAIGN, "quick")
    begin_attempt(run, {"node": "n1", "job_id": "5"})
    write_json(run.status_json, {"state": "running", "step": 3, "attempt": 1, "time": time.time() - 1000})
    (loaded,), _ = load_runs([run])
    assert loaded.state == run_states(tmp_path)[0].state == "unknown", "silence is no death"


def test_the_reason_that_is_written_is_the_one_that_is_read() -> None:
    assert signals.TIME_LIMIT == TIME_LIMIT
