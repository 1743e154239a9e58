"""What one run is doing, from what was written about it; nothing is concluded from what is absent.

The trainer's own word (status.json) stands where it has ended. What the trainer cannot say, since it is not there to
say it, follows from the record of the attempt, the ledger, and whether the process lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal, cast

import pydantic

from hpcstab.errors import RunError
from hpcstab.launch.ledger import Job, Ledger, ledger_path, read_ledger
from hpcstab.launch.machine import Process
from hpcstab.launch.signals import TIME_LIMIT
from hpcstab.rundir import RunDir, read_json

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
            ledger = read_ledger(ledger_path(run.path.parents[2], ledger.campaign))
            job = ledger.jobs[job.index]
        again = _read(run, ledger, job)
        if again == seen:
            break
        seen = again
    return seen


def answer(seen: Evidence, now: float) -> Answer:
    """The state of a run."""
    status, attempt = seen.status, seen.attempt
    if not seen.run.path.is_dir():
        return Answer("lost", "folder", now, "its folder was removed")
    if status and status.get("state") in TRAINER_ENDS and is_of(status, attempt) and not seen.alive:
        error = status.get("error")
        return Answer(status["state"], "status.json", number(status.get("time")) or now, first_line(error))
    if attempt is None:
        return _before_an_attempt(seen, now)
    if attempt.get("end") is not None:
        return _ended(seen, attempt, now)
    return _open(seen, attempt, now)


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


def _before_an_attempt(seen: Evidence, now: float) -> Answer:
    if seen.ledger is None or seen.job is None:
        return Answer("unknown", "folder", now, "no attempt was recorded, and no ledger names the run")
    job = seen.job
    if seen.alive:
        return Answer("queued", "process", now, "cancel requested" if job.cancelled_at else None)
    if job.cancelled_at is not None and (seen.alive is False or job.process is None):
        return Answer("cancelled", "ledger", job.cancelled_at)
    if seen.alive is False:
        never = f"was not started: {seen.ledger.error or 'its starter ended before it'}"
        return Answer("lost", "process", now, never if job.process is None else "ended before its first attempt")
    host = seen.ledger.owner.host if seen.ledger.owner else "another machine"
    return Answer("unknown", "ledger", seen.ledger.created, f"was submitted on {host}")


def _ended(seen: Evidence, attempt: Mapping[str, Any], now: float) -> Answer:
    reason, end = str(attempt.get("reason")), number(attempt.get("end")) or now
    source = f"attempts/{seen.run.attempt_json(int(number(attempt.get('attempt')) or 0)).name}"
    if reason in TRAINER_ENDS:
        return Answer(cast(State, reason), source, end)
    if reason == TIME_LIMIT:
        return Answer("timeout", source, end)
    return Answer("cancelled" if _was_cancelled(seen, attempt) else "stopped", source, end, reason)


def _open(seen: Evidence, attempt: Mapping[str, Any], now: float) -> Answer:
    status = seen.status if seen.status and is_of(seen.status, attempt) else {}
    heartbeat = number(status.get("time"))
    last = heartbeat or number(attempt.get("start")) or now
    asked = _was_cancelled(seen, attempt)
    if seen.alive is False:
        gone = f"its process is gone; last sign of life {now - last:.0f} s ago"
        return Answer("cancelled", "process", now, "was killed") if asked else Answer("lost", "process", now, gone)
    silence = f"no heartbeat for {now - last:.0f} s" if now - last > SILENT_S else None
    if seen.alive is None and silence:
        return Answer("unknown", "status.json", last, f"runs on {attempt.get('node')}, {silence}")
    if status.get("state") in TRAINER_ENDS:  # not over before its process is: what it still has to write can fail
        return Answer("running", "status.json", last, f"{status['state']}, writes its last files")
    detail = "cancel requested" if asked else silence
    if heartbeat is None:
        return Answer("running", "process", now, detail or "starts")
    return Answer("running", "status.json", last, detail)


def _was_cancelled(seen: Evidence, attempt: Mapping[str, Any]) -> bool:
    return seen.job is not None and was_cancelled(seen.job, attempt)
