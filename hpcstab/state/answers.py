"""What Slurm last said about the jobs of a root, as it was written down; asking is the launch room's.

    runs/.submissions/scheduler.json

It stays for readers without a scheduler, each answer with the time at which it was given.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.rundir import SUBMISSIONS, read_json, write_json
from hpcstab.state.ledger import ANSWERS, Job, Ledger

_ENDED = frozenset(
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
_NOT_OPENED = 53
"""Slurm's own exit code of a job whose log it could not open: there was nowhere to write the reason."""


@dataclass(frozen=True)
class JobAnswer:
    """What Slurm says about one job; ``start`` is when it starts or started, in local time, where that is known.

    ``exit_code`` is ``<status>:<signal>``, from accounting only.
    """

    job_id: str
    name: str
    state: str
    reason: str | None
    start: str | None
    node: str | None
    source: str
    exit_code: str | None = None

    @property
    def could_not_launch(self) -> bool:
        """The node did not get so far as to run the batch script; as 22.05, newer ones and accounting put it."""
        reason = self.reason or ""
        return (
            reason == "JobLaunchFailure"
            or reason.startswith(f"RaisedSignal:{_NOT_OPENED}")
            or self.exit_code == f"0:{_NOT_OPENED}"
        )


@dataclass(frozen=True)
class Scheduled:
    """What Slurm said about a job, and at which Unix time."""

    answer: JobAnswer
    time: float

    @property
    def has_ended(self) -> bool:
        """Slurm will not start it again by itself."""
        return self.answer.state in _ENDED


@dataclass(frozen=True)
class Answers:
    """The last answers by job id; ``problem``: why the newest question had none.

    ``cluster`` and ``uid``: whose queue the newest answer was, where some job was missing in it.
    """

    asked: float
    problem: str | None
    jobs: dict[str, Scheduled]
    cluster: str | None = None
    uid: int | None = None

    def of(self, ledger: Ledger, job: Job) -> Scheduled | None:
        """About a job of ours, and not about another one that got its id."""
        own = self._of(job.job_id or "", ledger)
        if own is not None and own.answer.state != "PENDING":
            return own
        # tasks cancelled before they were scheduled have no row each, only one of their array's bare id
        array = self._of((job.job_id or "").partition("_")[0], ledger)
        return array if array is not None and array.has_ended and (own is None or array.time > own.time) else own

    def lacks(self, ledger: Ledger, job: Job) -> bool:
        """Whether the newest answer should have named a job that is queued or runs, and does not.

        Silence alone tells nothing: it may be that of another cluster, of another user's queue, or of no Slurm at all.
        """
        slurm = ledger.slurm
        if self.problem is not None or slurm is None or slurm.cluster_name is None:
            return False
        if (self.cluster, self.uid) != (slurm.cluster_name, slurm.uid) or self.asked <= ledger.created:
            return False
        if job.job_id is None:
            return not any(said.answer.name == ledger.campaign for said in self.jobs.values())
        said = self.of(ledger, job)
        return said is None or (said.time < self.asked and not said.has_ended)

    def _of(self, job_id: str, ledger: Ledger) -> Scheduled | None:
        found = self.jobs.get(job_id)
        return found if found is not None and found.answer.name == ledger.campaign else None


def answers_path(root: Path) -> Path:
    """``<root>/.submissions/scheduler.json``."""
    return root / SUBMISSIONS / ANSWERS


def read_answers(root: Path) -> Answers:
    """What was written; nothing where it cannot be read: it is asked again."""
    try:
        values = read_json(answers_path(root)) or {}
        jobs = {}
        for job_id, entry in values.pop("jobs", {}).items():
            at = entry.pop("time")
            jobs[job_id] = Scheduled(JobAnswer(**entry), at)
        asked, problem = float(values.pop("asked", 0.0)), values.pop("problem", None)
        return Answers(asked, problem, jobs, **values)
    except (RunError, TypeError, ValueError, KeyError, AttributeError):
        return Answers(0.0, None, {})


def write_answers(root: Path, answers: Answers) -> None:
    """Write them down for all readers."""
    jobs = {job_id: {**asdict(one.answer), "time": one.time} for job_id, one in answers.jobs.items()}
    write_json(answers_path(root), _facts(answers) | {"jobs": jobs})


def _facts(answers: Answers) -> dict[str, Any]:
    return {
        "asked": answers.asked,
        "problem": answers.problem,
        "cluster": answers.cluster,
        "uid": answers.uid,
    }
