"""The scheduler's last answers about all jobs of a root: asked at most every 10 s, by however many readers.

    runs/.submissions/scheduler.json

They stay for readers without a scheduler, each with the time at which it was given.
"""

from __future__ import annotations

import contextlib
import time
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcstab.errors import HpcstabError, LaunchError, RunError
from hpcstab.launch import scheduler
from hpcstab.launch.ledger import ANSWERS, Job, Ledger, ledger_path, locked, read_ledgers, updating
from hpcstab.launch.scheduler import JobAnswer
from hpcstab.rundir import SUBMISSIONS, read_json, write_json

MIN_AGE_S = 10.0
ENDED = frozenset(
    {
        "BOOT_FAIL",
        "CANCELLED",
        "COMPLETED",
        "DEADLINE",
        "FAILED",
        "NODE_FAIL",
        "OUT_OF_MEMORY",
        "PREEMPTED",
        "REVOKED",
        "TIMEOUT",
    }
)


@dataclass(frozen=True)
class Scheduled:
    """What Slurm said about a job, and at which Unix time."""

    answer: JobAnswer
    time: float

    @property
    def has_ended(self) -> bool:
        """Slurm will not start it again by itself."""
        return self.answer.state in ENDED


@dataclass(frozen=True)
class Answers:
    """The last answers by job id; ``problem``: why the newest question had none."""

    asked: float
    problem: str | None
    jobs: dict[str, Scheduled]

    def of(self, ledger: Ledger, job: Job) -> Scheduled | None:
        """About a job of ours, and not about another one that got its id."""
        own = self._of(job.job_id or "", ledger)
        if own is not None and own.answer.state != "PENDING":
            return own
        # tasks cancelled before they were scheduled have no row each, only one of their array's bare id
        array = self._of((job.job_id or "").partition("_")[0], ledger)
        return array if array is not None and array.has_ended and (own is None or array.time > own.time) else own

    def _of(self, job_id: str, ledger: Ledger) -> Scheduled | None:
        found = self.jobs.get(job_id)
        return found if found is not None and found.answer.name == ledger.campaign else None


def scheduler_answers(root: Path, min_age_s: float | None = None) -> Answers:
    """The answers of the cache, or new ones where these are older and some job has not ended."""
    min_age_s = MIN_AGE_S if min_age_s is None else min_age_s
    known = _read(root)
    if time.time() - known.asked < min_age_s:
        return known
    with contextlib.suppress(HpcstabError), locked(_path(root).with_suffix(".lock")):
        known = _read(root)  # somebody else may have asked while we waited
        if time.time() - known.asked >= min_age_s:
            known = _ask(root, known)
    return known


def _ask(root: Path, known: Answers) -> Answers:
    ledgers = [ledger for ledger in read_ledgers(root)[0] if ledger.executor == "slurm"]
    jobs = [(ledger, job) for ledger in ledgers for job in ledger.jobs]
    open_ids = [job.job_id for ledger, job in jobs if job.job_id and not _has_ended(known.of(ledger, job))]
    nameless = [ledger for ledger in ledgers if any(job.job_id is None for job in ledger.jobs)]
    if not open_ids and not nameless:
        return known
    now = time.time()
    try:
        found = scheduler.job_answers(open_ids)
        problem = None
    except LaunchError as error:
        found, problem = {}, str(error)
    _reconcile(root, nameless, found)
    ours = {ledger.campaign for ledger in ledgers}
    new = {job_id: Scheduled(answer, now) for job_id, answer in found.items() if answer.name in ours}
    answers = replace(known, asked=time.time(), problem=problem, jobs=known.jobs | new)
    write_json(_path(root), _as_json(answers))
    return answers


def _has_ended(scheduled: Scheduled | None) -> bool:
    return scheduled is not None and scheduled.has_ended


def _reconcile(root: Path, nameless: list[Ledger], found: dict[str, JobAnswer]) -> None:
    """Write down the ids of jobs whose submitter died between sbatch and its ledger: their name is the campaign's."""
    for ledger in nameless:
        own = [answer.job_id for answer in found.values() if answer.name == ledger.campaign]
        if len(ledger.jobs) > 1:
            own = [job_id for job_id in own if "_" in job_id]
        if own:
            with updating(ledger_path(root, ledger.campaign)) as current:
                for job_id in own:
                    job = current.jobs[int(job_id.partition("_")[2] or 0)]
                    job.job_id = job.job_id or job_id


def _path(root: Path) -> Path:
    return root / SUBMISSIONS / ANSWERS


def _as_json(answers: Answers) -> dict[str, Any]:
    jobs = {job_id: {**asdict(one.answer), "time": one.time} for job_id, one in answers.jobs.items()}
    return {"asked": answers.asked, "problem": answers.problem, "jobs": jobs}


def _read(root: Path) -> Answers:
    """What was written; nothing where it cannot be read: it is asked again."""
    try:
        values = read_json(_path(root)) or {}
        jobs = {}
        for job_id, entry in values.get("jobs", {}).items():
            at = entry.pop("time")
            jobs[job_id] = Scheduled(JobAnswer(**entry), at)
        return Answers(float(values.get("asked", 0.0)), values.get("problem"), jobs)
    except (RunError, TypeError, ValueError, KeyError, AttributeError):
        return Answers(0.0, None, {})
