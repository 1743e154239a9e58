"""What runs inside a job: one attempt; on this machine after a wait for a slot."""

from __future__ import annotations

import contextlib
import faulthandler
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

from hpcstab.errors import EXIT_BAD_NEWS, HpcstabError
from hpcstab.launch import slurm_job
from hpcstab.launch.attempt import run_attempt
from hpcstab.launch.ledger import updating
from hpcstab.launch.machine import thread_variables
from hpcstab.launch.output import teed_to
from hpcstab.launch.rank import train_beside
from hpcstab.launch.rank_processes import other_ranks
from hpcstab.launch.signals import StoppedError, StopSignals
from hpcstab.launch.slots import slot
from hpcstab.rundir import RunDir
from hpcstab.state.ledger import Ledger, Resources, read_ledger
from hpcstab.state.process import Process

if TYPE_CHECKING:
    from hpcstab.execute import Execution

# a step that does not end keeps its slot for ever: so long after the time limit the process ends itself
_GRACE_S = 300.0


def run_job(run_path: str, ledger_path: str, index: int) -> str:
    """Train one run of a campaign; called by submitit with paths, so that its pickles hold nothing else.

    Returns:
        How it ended: the state of the attempt, or ``cancelled`` where it was stopped before it had one.
    """
    run, path = RunDir(Path(run_path)), Path(ledger_path)
    ledger = read_ledger(path)
    if ledger.slurm is not None:
        # submitit's handlers, which would requeue a run that has just ended, never get a signal
        with StopSignals(ignored_afterwards=True) as signals:
            return _run_on_slurm(run, ledger, index, ledger.slurm.signal_lead_s, signals)
    with StopSignals() as signals:
        try:
            with signals.interrupting():
                ledger = _adopt(path, index)
                waiting = contextlib.ExitStack()
                number = waiting.enter_context(slot(path.parents[1], ledger.resources.parallel_runs))
        except StoppedError:
            return "cancelled"
        with waiting:
            return _attempt(run, ledger, index, number, signals)


def _run_on_slurm(run: RunDir, ledger: Ledger, index: int, signal_lead_s: float, signals: StopSignals) -> str:
    """Slurm has the queue, the devices and the time limit; the ledger is only read here, it may be on another node."""
    if ledger.jobs[index].cancelled_at is not None:
        return "cancelled"
    threads = ledger.resources.threads_per_run
    os.environ.update(thread_variables(threads))
    facts = {"campaign": ledger.campaign, "threads": threads, **slurm_job.facts()}
    rank = slurm_job.take_rank(run)
    if rank:
        state = train_beside(run, signals.requested, lambda attempt: teed_to(run.log(attempt, rank)))
        if state == "stopped":
            slurm_job.wait_for_the_end()
        return state
    state = _recorded(
        lambda: run_attempt(
            run, facts, signals.requested, goes_on_after_loss=lambda: slurm_job.queue_again_after_loss(run)
        )
    )
    if state == "stopped":
        slurm_job.end_after_stop(signal_lead_s)
    return state


def _adopt(path: Path, index: int) -> Ledger:
    """Put this process into the ledger as the job, unless the job is to end.

    A signal that came before we listened is lost; the request that stands in the ledger is not.
    """
    with updating(path) as ledger:
        job = ledger.jobs[index]
        if job.cancelled_at is not None:
            raise StoppedError("cancelled")
        job.process = Process.current()
    return ledger


def _attempt(run: RunDir, ledger: Ledger, index: int, number: int, signals: StopSignals) -> str:
    resources = ledger.resources
    os.environ.update(thread_variables(resources.threads_per_run))
    devices = _take_devices(resources, number)
    ranks, threads = resources.ranks_per_run, resources.threads_per_run
    facts = {
        "campaign": ledger.campaign,
        "job_id": ledger.jobs[index].job_id,
        "slot": number,
        "threads": threads,
        "devices": devices,
        "ranks": ranks,
    }
    with _limited_to(resources.time_limit_s, signals):
        return _recorded(
            lambda: run_attempt(
                run,
                facts,
                signals.requested,
                lambda attempt: other_ranks(run, attempt, ranks, threads, devices),
            )
        )


def _recorded(train: Callable[[], Execution]) -> str:
    """One attempt; its state, unless it failed."""
    try:
        state = train().state
    except HpcstabError as error:
        print(f"hpcstab: {error}")  # into submitit's log: the run's own may be what cannot be written
        raise SystemExit(error.exit_code) from None
    if state == "failed":
        raise SystemExit(EXIT_BAD_NEWS)
    return state


def _take_devices(resources: Resources, number: int) -> list[str]:
    """Show the run the GPUs of its slot, slots taking turns; before torch is imported, which reads it once."""
    if resources.devices is None:
        os.environ.pop("CUDA_VISIBLE_DEVICES", None)  # submitit hides what we know nothing of
        return []
    count = resources.gpus_per_run
    first = number * count
    devices = [resources.devices[(first + turn) % len(resources.devices)] for turn in range(count)]
    os.environ["CUDA_VISIBLE_DEVICES"] = ",".join(devices)
    return devices


@contextlib.contextmanager
def _limited_to(time_limit_s: float, signals: StopSignals) -> Iterator[None]:
    """Ask the trainer to stop at the limit; where it does not, end with a traceback of where it hangs."""
    signals.set_time_limit(time_limit_s)
    faulthandler.dump_traceback_later(time_limit_s + _GRACE_S, exit=True, file=2)
    try:
        yield
    finally:
        faulthandler.cancel_dump_traceback_later()
