"""The starter: ``python -m hpcstab.launch.start <ledger>``, a process in its own session.

Local jobs are its children and not those of the terminal, so they survive both. It starts jobs as slots become free
and one ahead, which waits with its imports done: two hundred queued runs are no four hundred processes. When the
last one is started it ends.
"""

from __future__ import annotations

import sys
import time
import traceback
from pathlib import Path
from typing import Any

import submitit

from hpcstab.launch.job_body import run_job
from hpcstab.launch.ledger import updating
from hpcstab.launch.slots import turn
from hpcstab.state.ledger import read_ledger, submission_folder
from hpcstab.state.process import Process

_POLL_S = 0.2
# submitit counts a time limit from when the process starts, waiting included: ours counts from the slot
_NO_LIMIT_MIN = 366 * 24 * 60


def start_all(path: Path) -> None:
    """Start the jobs of a ledger in their order, after those of the campaigns submitted before."""
    with updating(path) as ledger:
        ledger.owner = Process.current()
    executor = submitit.LocalExecutor(folder=submission_folder(path))
    executor.update_parameters(timeout_min=_NO_LIMIT_MIN)
    started: list[Any] = []
    with turn(path.parents[1]):
        for job in ledger.jobs:
            while _num_unfinished(started) > ledger.resources.parallel_runs and not _is_cancelled(path, job.index):
                time.sleep(_POLL_S)
            if _num_unfinished(started) >= ledger.resources.parallel_runs:
                _wait_until_in_queue(path, started)
            started += _start_one(executor, path, job.index)
        _wait_until_in_queue(path, started)


def _num_unfinished(started: list[Any]) -> int:
    return sum(not job.done() for job in started)


def _is_cancelled(path: Path, index: int) -> bool:
    return read_ledger(path).jobs[index].cancelled_at is not None


def _wait_until_in_queue(path: Path, started: list[Any]) -> None:
    """Wait until every started job has put itself into the ledger: who is started after it then waits behind it."""
    while True:
        own = {job.job_id for job in read_ledger(path).jobs if job.process and str(job.process.pid) != job.job_id}
        if all(job.job_id in own or job.done() for job in started):
            return
        time.sleep(_POLL_S)


def _start_one(executor: Any, path: Path, index: int) -> list[Any]:
    """The started job; none where it was cancelled in the queue."""
    job = None
    try:
        with updating(path) as ledger:
            entry = ledger.jobs[index]
            if entry.cancelled_at is not None:
                return []
            job = executor.submit(run_job, str(path.parents[1] / entry.run_id), str(path), index)
            entry.job_id, entry.process = job.job_id, Process.of(int(job.job_id))
    except BaseException:
        if job is not None:
            job.cancel()  # one that the ledger does not know could neither be seen nor cancelled
        raise
    return [job]


def main(ledger: str) -> int:
    """Start the jobs; an error goes into the ledger, since nobody waits for this process."""
    path = Path(ledger)
    try:
        start_all(path)
    except Exception as error:
        traceback.print_exc()
        _record(path, f"{type(error).__name__}: {error}")
        return 1
    return 0


def _record(path: Path, message: str) -> None:
    with updating(path) as ledger:
        ledger.error = " ".join(message.split())


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
