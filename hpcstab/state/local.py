"""What a run is doing that no scheduler knows of; nothing is concluded from what is absent.

The trainer's own word (status.json) stands where it has ended. What the trainer cannot say, since it is not there to
say it, follows from the record of the attempt, the ledger, and whether the process lives.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, cast

from hpcstab.state.evidence import (
    SILENT_S,
    TRAINER_ENDS,
    Answer,
    Evidence,
    State,
    first_line,
    is_of,
    number,
    was_cancelled,
)

TIME_LIMIT = "time_limit"
"""The reason of an attempt that its own time limit ended."""


def answer_on_machine(seen: Evidence, now: float) -> Answer:
    """The state of a run of the local executor, or of `train`."""
    status, attempt = seen.status, seen.attempt
    if not seen.run.path.is_dir():
        return Answer("lost", "folder", now, "its folder was removed")
    if status and status.get("state") in TRAINER_ENDS and is_of(status, attempt) and not seen.alive:
        error = status.get("error")
        return Answer(status["state"], "status.json", number(status.get("time")) or now, first_line(error))
    if attempt is None:
        return _before_an_attempt(seen, now)
    if attempt.get("end") is not None:
        return ended_attempt(seen, attempt, now)
    return _open(seen, attempt, now)


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


def ended_attempt(seen: Evidence, attempt: Mapping[str, Any], now: float) -> Answer:
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
        return Answer("running", "status.json", last, writes_its_last_files(status))
    detail = "cancel requested" if asked else silence
    if heartbeat is None:
        return Answer("running", "process", now, "cancel requested" if asked else starts(now - last))
    return Answer("running", "status.json", last, detail)


def writes_its_last_files(status: Mapping[str, Any]) -> str:
    """The training is over, its attempt is not."""
    return f"{status['state']}, writes its last files"


def starts(since_s: float) -> str:
    """Before its first heartbeat: data are read and, in some models, parts are fitted; that may take minutes."""
    return f"starts, for {since_s:.0f} s" if since_s > SILENT_S else "starts"


def _was_cancelled(seen: Evidence, attempt: Mapping[str, Any]) -> bool:
    return seen.job is not None and was_cancelled(seen.job, attempt)
