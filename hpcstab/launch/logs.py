"""What a run printed: the log of its attempt, or what submitit caught of a job that died before it had one."""

from __future__ import annotations

import codecs
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path

from hpcstab.errors import EXIT_WRONG_REQUEST, RunError
from hpcstab.launch.queue import state_of
from hpcstab.rundir import RunDir
from hpcstab.state.ledger import find_job, ledger_path, raw_logs, submission_folder

_POLL_S = 0.3


def log_file(run: RunDir, attempt: int | None = None, rank: int = 0) -> Path | None:
    """The file with what a rank of an attempt printed, the newest where None; None where nothing was printed yet.

    Raises:
        RunError: there is no such attempt, or it had no such rank.
    """
    numbers = run.attempt_numbers()
    if attempt is not None and attempt not in numbers:
        known = ", ".join(map(str, numbers)) or "none"
        raise RunError(f"{run.run_id}: no attempt {attempt}; there are: {known}", exit_code=EXIT_WRONG_REQUEST)
    if rank and not (numbers and run.log(attempt or numbers[-1], rank).exists()):
        raise RunError(f"{run.run_id}: no log of rank {rank}; a run on one rank has none", exit_code=EXIT_WRONG_REQUEST)
    candidates = [run.log(attempt or numbers[-1], rank)] if numbers else _raw_logs(run)
    return next((path for path in candidates if path.is_file() and path.stat().st_size), None)


def wait_for_log(run: RunDir, attempt: int | None = None, rank: int = 0) -> Path | None:
    """The same, once there is one; None where the run ended without."""
    while True:
        ended = not state_of(run).is_open
        path = log_file(run, attempt, rank)
        if path is not None or ended:
            return path
        time.sleep(_POLL_S)


def tail(path: Path, num_lines: int) -> tuple[str, int]:
    """The last lines of a file, and where it ended, in bytes."""
    try:
        with path.open("rb") as file:
            lines = deque(file, maxlen=num_lines)
            return b"".join(lines).decode(errors="replace"), file.tell()
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def follow(run: RunDir, path: Path, offset: int) -> Iterator[str]:
    """What is appended to ``path`` after ``offset``, until the run has ended."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    while True:
        ended = not state_of(run).is_open  # asked before reading: the last words come before the end
        with path.open("rb") as file:
            file.seek(offset)
            data = file.read()
        offset += len(data)
        if data:
            yield decoder.decode(data)
        elif ended:
            return
        else:
            time.sleep(_POLL_S)


def _raw_logs(run: RunDir) -> list[Path]:
    """What a run left that ended without an attempt: of its job, else of the starter that could not start it."""
    root = run.path.parents[2]
    if state_of(run).is_open:
        return []
    ledger, job = find_job(root, run.run_id)
    if ledger is None or job is None:
        return []
    return [*raw_logs(root, ledger, job), submission_folder(ledger_path(root, ledger.campaign)) / "starter.log"]
