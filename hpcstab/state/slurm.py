"""What a run on Slurm is doing: Slurm's last answer about its job, and what was written about its attempts.

The trainer's end stands, once its attempt is on record as ended. Else Slurm decides whether the run goes on. A job
about which it cannot be asked has neither ended nor failed; one that is missing where it would have to be named is in
no queue.
"""

from __future__ import annotations

from datetime import datetime

from hpcstab.state.answers import Answers, Scheduled
from hpcstab.state.early_end import why_not_started
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
from hpcstab.state.local import ended_attempt, starts, writes_its_last_files

SETTLED_S = 120.0
"""So long after its beginning no submission is under way any more: sbatch, left alone, gives up before that."""
_AT_WORK = ("RUNNING", "COMPLETING")
_QUEUED = frozenset(
    {"PENDING", "CONFIGURING", "REQUEUED", "REQUEUE_HOLD", "REQUEUE_FED", "SPECIAL_EXIT", "RESV_DEL_HOLD"}
)
_ENDS: dict[str, State] = {
    "CANCELLED": "cancelled",
    "TIMEOUT": "timeout",
    "DEADLINE": "timeout",
    "PREEMPTED": "preempted",
}
_REASONS = {
    "JobArrayTaskLimit": "waits for earlier runs of its campaign",
    "Resources": "waits for free resources",
    "Priority": "waits behind jobs of higher priority",
    "JobHeldUser": "held by its user",
    "JobHeldAdmin": "held by an operator",
    "PartitionTimeLimit": "never starts: its time limit is above the partition's",
}


def answer_on_slurm(seen: Evidence, answers: Answers | None, now: float) -> Answer:
    """The state of a run whose ledger is one of Slurm."""
    status, attempt = seen.status, seen.attempt
    assert seen.ledger is not None and seen.job is not None
    scheduled = answers.of(seen.ledger, seen.job) if answers is not None else None
    if not seen.run.path.is_dir():
        return Answer("lost", "folder", now, "its folder was removed")
    if status and status.get("state") in TRAINER_ENDS and is_of(status, attempt):
        time = number(status.get("time")) or now
        if _still_writes(seen, scheduled, now - time):
            return Answer("running", "status.json", time, writes_its_last_files(status))
        return Answer(status["state"], "status.json", time, first_line(status.get("error")))
    is_queued = scheduled is not None and scheduled.answer.state in _QUEUED
    if attempt is not None and attempt.get("reason") == "failed" and not is_queued:
        return Answer("failed", "attempt", number(attempt.get("end")) or now)
    if answers is not None and answers.lacks(seen.ledger, seen.job) and not _is_newer(seen, answers.asked):
        return _gone(seen, answers.asked, now)
    if scheduled is None:
        return _without_answer(seen, now)
    if _is_older(scheduled, seen):
        return _running(seen, scheduled, now)
    if scheduled.answer.state in _QUEUED:
        return _queued(seen, scheduled)
    if scheduled.has_ended:
        return _ended(seen, scheduled)
    return _running(seen, scheduled, now)


def _still_writes(seen: Evidence, scheduled: Scheduled | None, silent_s: float) -> bool:
    """Whether a trainer that has named its end may still be about to record that of its attempt."""
    if seen.attempt is None or seen.attempt.get("end") is not None:
        return False
    if seen.alive is not None:
        return seen.alive
    # it is on another host: only Slurm, or a long silence, tells that its process was killed in between
    is_over = scheduled is not None and scheduled.answer.state not in _AT_WORK and not _is_older(scheduled, seen)
    return silent_s <= SILENT_S and not is_over


def _is_older(scheduled: Scheduled, seen: Evidence) -> bool:
    """Whether an attempt has begun, or shown itself alive in a job that waited, since Slurm was asked."""
    if seen.attempt is None or seen.attempt.get("end") is not None:
        return False
    if (number(seen.attempt.get("start")) or 0.0) > scheduled.time:
        return True
    status = seen.status if seen.status and is_of(seen.status, seen.attempt) else {}
    return not scheduled.has_ended and (number(status.get("time")) or 0.0) > scheduled.time


def _queued(seen: Evidence, scheduled: Scheduled) -> Answer:
    answer = scheduled.answer
    reason = _REASONS.get(answer.reason or "", answer.reason or "")
    if answer.reason == "BeginTime" and answer.start:
        # Slurm holds a job for about two minutes before it starts again
        reason = f"{'starts' if seen.attempt is None else 'restarts'} at {_clock(answer.start)}"
    if seen.job is not None and seen.job.cancelled_at is not None:
        reason = "cancel requested"
    parts = [reason, _last_attempt(seen)]
    return Answer("queued", answer.source, scheduled.time, ", ".join(part for part in parts if part) or None)


def _running(seen: Evidence, scheduled: Scheduled, now: float) -> Answer:
    answer, attempt = scheduled.answer, seen.attempt
    is_news = answer.state not in _AT_WORK and not _is_older(scheduled, seen)
    detail = f"Slurm says {answer.state}" if is_news else None
    status = seen.status if seen.status and is_of(seen.status, attempt) else {}
    heartbeat = number(status.get("time"))
    last = max(scheduled.time, heartbeat or 0.0)
    if now - last > SILENT_S:
        return Answer("unknown", answer.source, last, f"was {answer.state} on {answer.node}; nothing was heard since")
    if attempt is None:
        return Answer("running", answer.source, scheduled.time, detail or "starts")
    if seen.job is not None and was_cancelled(seen.job, attempt):
        return Answer("running", answer.source, scheduled.time, "cancel requested")
    if attempt.get("end") is not None:
        return Answer("running", answer.source, scheduled.time, detail or f"{_last_attempt(seen)}, waits for Slurm")
    if heartbeat is None or heartbeat < scheduled.time:
        silent = now - (heartbeat or number(attempt.get("start")) or now)
        quiet = f"no heartbeat for {silent:.0f} s" if silent > SILENT_S else None
        return Answer("running", answer.source, scheduled.time, detail or (quiet if heartbeat else starts(silent)))
    return Answer("running", "status.json", heartbeat, detail)


def _ended(seen: Evidence, scheduled: Scheduled) -> Answer:
    """Slurm's job is over, and its trainer did not say how the training ended."""
    answer = scheduled.answer
    asked = seen.job is not None and seen.job.cancelled_at is not None
    state = _ENDS.get(answer.state)
    detail = _last_attempt(seen)
    if state == "cancelled" or (asked and answer.state == "COMPLETED"):
        return Answer("cancelled", answer.source, scheduled.time, detail if asked else detail or "not by hpcstab")
    if state is not None:
        return Answer(state, answer.source, scheduled.time, detail)
    if answer.state == "FAILED" and seen.attempt is None:
        return Answer("failed", answer.source, scheduled.time, why_not_started(seen, answer))
    if answer.state == "COMPLETED" and seen.attempt is not None and seen.attempt.get("end") is not None:
        return Answer("stopped", answer.source, scheduled.time, detail)
    where = f" on {answer.node}" if answer.node else ""
    return Answer("lost", answer.source, scheduled.time, f"Slurm says {answer.state}{where}, the trainer nothing")


def _gone(seen: Evidence, asked: float, now: float) -> Answer:
    """Slurm answered, about all jobs of whoever submitted, and its job was not among them."""
    job, attempt = seen.job, seen.attempt
    assert job is not None
    if attempt is not None and attempt.get("end") is not None:
        return ended_attempt(seen, attempt, now)
    if job.cancelled_at is not None:
        return Answer("cancelled", "ledger", job.cancelled_at, _last_attempt(seen) or None)
    if attempt is not None:
        silent = now - (_last_sign(seen) or now)
        detail = f"Slurm no longer knows job {job.job_id}; last sign of life {silent:.0f} s ago"
        return Answer("lost", "squeue", asked, detail)
    if job.job_id is None:
        return _not_submitted(seen, asked)
    return Answer("lost", "squeue", asked, f"Slurm no longer knows job {job.job_id}; {why_not_started(seen)}")


def _not_submitted(seen: Evidence, asked: float) -> Answer:
    """No job has the name of its campaign; whether one can still come depends on the submission."""
    ledger = seen.ledger
    assert ledger is not None
    if seen.alive:
        return Answer("queued", "ledger", ledger.created, "is being submitted")
    if asked - ledger.created < SETTLED_S:
        sure_at = datetime.fromtimestamp(ledger.created + SETTLED_S).strftime("%H:%M:%S")
        detail = f"its submission was interrupted; that Slurm has no job of it is certain from {sure_at} on"
        return Answer("unknown", "squeue", asked, detail)
    return Answer("lost", "squeue", asked, "was never queued: its submission was interrupted; submit it again")


def _without_answer(seen: Evidence, now: float) -> Answer:
    ledger, job, attempt = seen.ledger, seen.job, seen.attempt
    assert ledger is not None and job is not None
    if attempt is None:
        if job.cancelled_at is not None and job.job_id is None:
            return Answer("cancelled", "ledger", job.cancelled_at)
        if now - ledger.created < SILENT_S:
            return Answer("queued", "ledger", ledger.created, "submitted" if job.job_id else "is being submitted")
        name = f"job {job.job_id}" if job.job_id else "its submission was interrupted"
        return Answer("unknown", "ledger", ledger.created, f"{name}: Slurm has said nothing about it")
    last = _last_sign(seen) or now
    if attempt.get("end") is None and now - last <= SILENT_S:
        return Answer("running", "status.json", last)
    return Answer("unknown", "status.json", last, f"{_last_attempt(seen)}; Slurm has said nothing about its job")


def _is_newer(seen: Evidence, asked: float) -> bool:
    """Whether an attempt that has no end has shown itself since Slurm was asked."""
    return seen.attempt is not None and seen.attempt.get("end") is None and (_last_sign(seen) or 0.0) > asked


def _last_sign(seen: Evidence) -> float | None:
    """When the newest attempt was heard of last."""
    status = seen.status if seen.status and is_of(seen.status, seen.attempt) else {}
    return number(status.get("time")) or number((seen.attempt or {}).get("start"))


def _last_attempt(seen: Evidence) -> str:
    """``attempt 1: SIGTERM``; empty where there was none."""
    if seen.attempt is None:
        return ""
    return f"attempt {seen.attempt.get('attempt')}: {seen.attempt.get('reason') or 'no end recorded'}"


def _clock(start: str) -> str:
    try:
        return datetime.fromisoformat(start).strftime("%H:%M")
    except ValueError:
        return start
