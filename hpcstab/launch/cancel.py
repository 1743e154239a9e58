"""Asking runs to end: the request goes into the ledger first, then the signal to the process, if it is the one."""

from __future__ import annotations

import signal
from dataclasses import dataclass
from pathlib import Path

from hpcstab.errors import EXIT_WRONG_REQUEST, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.answers import scheduler_answers
from hpcstab.launch.ledger import mark_cancelled
from hpcstab.launch.queue import run_state
from hpcstab.rundir import RunDir, find_run
from hpcstab.state.evidence import State, collect, responsible_process
from hpcstab.state.ledger import Ledger, find_job, is_campaign_id, ledger_path, read_ledger


@dataclass(frozen=True)
class Cancelled:
    """What became of the request for one run; ``asked`` False where there was nothing to cancel."""

    run_id: str
    asked: bool
    outcome: str


def cancel(what: str, root: Path) -> list[Cancelled]:
    """Cancel a campaign (by its id) or one run (path, run id or unique part), queued or running.

    Raises:
        RunError: nothing or several runs match.
        LaunchError: the ledger cannot be read, or a process belongs to another user.
    """
    if not what:  # a part of every run: an unset variable of a script must not cancel anything
        raise LaunchError("cancel wants a run or a campaign, got ''", exit_code=EXIT_WRONG_REQUEST)
    if is_campaign_id(what) and ledger_path(root, what).exists():
        return cancel_campaign(ledger_path(root, what))
    run = find_run(what, root)
    root = run.path.parents[2]
    ledger, job = find_job(root, run.run_id)
    if ledger is None or job is None:
        return [_cancel_without_ledger(run)]
    return _cancel(root, ledger, [job.index])


def cancel_campaign(path: Path) -> list[Cancelled]:
    """Cancel all runs of a ledger that have not ended."""
    ledger = read_ledger(path)
    return _cancel(path.parents[1], ledger, [job.index for job in ledger.jobs])


def _cancel(root: Path, ledger: Ledger, indexes: list[int]) -> list[Cancelled]:
    runs = {index: RunDir(root / ledger.jobs[index].run_id) for index in indexes}
    answers = None
    if ledger.slurm:
        answers = scheduler_answers(root, min_age_s=0)
        ledger = read_ledger(ledger_path(root, ledger.campaign))  # asking can have found the ids of its jobs
    states = {index: run_state(run, ledger, ledger.jobs[index], answers) for index, run in runs.items()}
    asked = {index for index, state in states.items() if state.is_open}
    if asked:
        ledger = mark_cancelled(ledger_path(root, ledger.campaign), asked)
    if ledger.slurm:
        _cancel_jobs(root, ledger, asked)
    return [
        _asked(run, ledger, index, states[index].state)
        if index in asked
        else Cancelled(run.run_id, False, f"nothing to cancel: {states[index].state}")
        for index, run in runs.items()
    ]


def _asked(run: RunDir, ledger: Ledger, index: int, state: State) -> Cancelled:
    if ledger.slurm is None:
        return _signal(run, ledger, index)
    job_id = ledger.jobs[index].job_id
    if job_id is None:
        return Cancelled(run.run_id, True, "has no job so far; one that still comes ends when it starts")
    outcome = "taken from the queue" if state == "queued" else "asked to stop"
    return Cancelled(run.run_id, True, f"{outcome} (job {job_id})")


def _cancel_jobs(root: Path, ledger: Ledger, asked: set[int]) -> None:
    """One scancel for all; the request stands in the ledger, so that a job that escapes it ends when it starts."""
    job_ids = [job.job_id for job in ledger.jobs if job.index in asked and job.job_id]
    if not job_ids and len(asked) == len(ledger.jobs):
        scheduler.cancel_named(ledger.campaign)  # its submission was interrupted, and may still reach Slurm
    scheduler.cancel_jobs(job_ids)
    scheduler_answers(root, min_age_s=0)


def _signal(run: RunDir, ledger: Ledger, index: int) -> Cancelled:
    seen = collect(run, ledger, ledger.jobs[index])
    process = responsible_process(seen)
    if process is None:
        return Cancelled(run.run_id, True, "taken from the queue")
    if process.is_alive() is None:
        return Cancelled(run.run_id, True, f"runs on {process.host}: cancel it there")
    if process.send_signal(signal.SIGTERM):
        return Cancelled(run.run_id, True, f"asked to stop (process {process.pid})")
    return Cancelled(run.run_id, True, "has ended in the meantime")


def _cancel_without_ledger(run: RunDir) -> Cancelled:
    """A run of ``train``: there is no queue, only the process that trains it."""
    process = responsible_process(collect(run))
    if process is None or not process.is_alive():
        return Cancelled(run.run_id, False, f"nothing to cancel: {run_state(run).state}")
    process.send_signal(signal.SIGTERM)
    return Cancelled(run.run_id, True, f"asked to stop (process {process.pid})")
