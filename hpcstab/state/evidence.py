"""All that was written about one run, read at one moment, and the words for what follows from it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import pydantic

from hpcstab.errors import HpcstabError, RunError
from hpcstab.rundir import RunDir, read_json
from hpcstab.state.ledger import Job, Ledger, ledger_path, read_ledger
from hpcstab.state.process import Process

State = Literal[
    "queued",
    "running",
    "completed",
    "diverged",
    "halted",
    "failed",
    "stopped",
    "preempted",
    "timeout",
    "cancelled",
    "lost",
    "unknown",
]
RESULTS = ("completed", "diverged", "halted")
"""The training ended as trainings end; diverged is a result, never a crash."""
OPEN = ("queued", "running", "unknown")
"""Not known to have ended."""
TRAINER_ENDS = (*RESULTS, "failed")
_LOOKS = 3  # queued, then running, then ended: more cannot have happened since
SILENT_S = 60.0  # the trainer writes status.json at least every 10 s


@dataclass(frozen=True)
class Answer:
    """A state, which record or process said so, at which Unix time, and what there is to add."""

    state: State
    source: str
    time: float
    detail: str | None = None


@dataclass(frozen=True)
class Evidence:
    """All there is about a run at one moment; ``alive`` None where that cannot be known from here."""

    run: RunDir
    ledger: Ledger | None
    job: Job | None
    attempt: Mapping[str, Any] | None  # the newest
    status: Mapping[str, Any] | None
    alive: bool | None
    problem: str | None  # a file that cannot be read


def collect(run: RunDir, ledger: Ledger | None = None, job: Job | None = None) -> Evidence:
    """Read what there is; where the process has gone, also what it wrote between our look at its files and at it."""
    seen = _read(run, ledger, job)
    for _ in range(_LOOKS):
        if seen.alive is not False:
            break
        if ledger is not None and job is not None:
            try:
                ledger = read_ledger(ledger_path(run.path.parents[2], ledger.campaign))
            except HpcstabError as error:
                return Evidence(run, None, None, None, None, None, str(error))
            job = ledger.jobs[job.index]
        again = _read(run, ledger, job)
        if again == seen:
            break
        seen = again
    return seen


def responsible_process(seen: Evidence) -> Process | None:
    """Whose life decides whether the run goes on; None where it has ended or nobody is named."""
    return _responsible(seen.attempt, seen.ledger, seen.job)


def first_line(text: object) -> str | None:
    """The first line of an error, None where there is none."""
    lines = str(text).splitlines() if text else []
    return lines[0] if lines else None


def number(value: object) -> float | None:
    """A number of status.json, where what is not finite is spelled as text; None for anything else."""
    if isinstance(value, str) and value in ("nan", "inf", "-inf"):
        return float(value)
    return float(value) if isinstance(value, int | float) and not isinstance(value, bool) else None


def is_of(status: Mapping[str, Any], attempt: Mapping[str, Any] | None) -> bool:
    """Whether the trainer of the newest attempt wrote the status; a resumed run still has an older one."""
    return attempt is None or status.get("attempt") == attempt.get("attempt")


def was_cancelled(job: Job, attempt: Mapping[str, Any]) -> bool:
    """Whether this attempt was asked to end; a run that was resumed later is not cancelled any more."""
    return job.cancelled_at is not None and job.cancelled_at >= (number(attempt.get("start")) or 0.0)


def _read(run: RunDir, ledger: Ledger | None, job: Job | None) -> Evidence:
    attempt, status, problems = None, None, []
    try:
        numbers = run.attempt_numbers()
        attempt = read_json(run.attempt_json(numbers[-1])) if numbers else None
    except RunError as error:
        problems.append(str(error))
    try:
        status = read_json(run.status_json)
    except RunError as error:
        problems.append(str(error))
    process = _responsible(attempt, ledger, job)
    alive = process.is_alive() if process is not None else None
    return Evidence(run, ledger, job, attempt, status, alive, problems[0] if problems else None)


def _responsible(attempt: Mapping[str, Any] | None, ledger: Ledger | None, job: Job | None) -> Process | None:
    if attempt is not None:
        try:
            return Process.model_validate(attempt.get("process")) if attempt.get("end") is None else None
        except pydantic.ValidationError:
            return None
    if ledger is None or job is None:
        return None
    return job.process or (ledger.owner if job.cancelled_at is None else None)
