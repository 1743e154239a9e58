"""The record of a campaign: which runs it started as which jobs, and what was asked of it since.

    runs/.submissions/<campaign id>.json        this record
    runs/.submissions/<campaign id>/            submitit's pickles and raw logs, our lock, starter.log

It is on disk before anything starts. Several processes change it (starter, jobs, cancel), each under
a lock; readers need none, since it is renamed into place. Run ids are relative to the root, so that a
root can be moved.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Literal

import pydantic
from pydantic import BaseModel, ConfigDict

from hpcstab.config import NAME
from hpcstab.errors import EXIT_WRONG_REQUEST, LaunchError, RunError
from hpcstab.rundir import SUBMISSIONS, read_json
from hpcstab.state.process import Process

ANSWERS = "scheduler.json"
"""The one file beside the ledgers that is none: what Slurm last said."""
_CAMPAIGN_ID = re.compile(rf"{NAME.pattern}_\d{{8}}_\d{{6}}")


class _Record(BaseModel):
    model_config = ConfigDict(strict=True, extra="forbid", validate_assignment=True)


class Job(_Record):
    """One run as a job. ``process`` is the job's own once it lives, its controller's before; none on Slurm."""

    index: int
    run_id: str
    job_id: str | None = None
    process: Process | None = None
    cancelled_at: float | None = None


class Resources(_Record):
    """What the jobs may use; ``devices`` None: there are no GPUs, and nothing is hidden.

    ``threads_per_run``: of each of the ``ranks_per_run`` processes of a run.
    """

    parallel_runs: int
    threads_per_run: int
    gpus_per_run: int
    ranks_per_run: int = 1
    devices: list[str] | None
    time_limit_s: float


class Slurm(_Record):
    """What the jobs of a Slurm cluster were submitted with, so that what was queued can be read afterwards.

    ``gres`` of a node; ``nodes`` of one job; ``cpus_per_task`` and ``mem_gib`` of one rank. ``cluster_name`` (Slurm's
    own) and ``uid``: whose queue must name the jobs; None in ledgers older than these keys.
    """

    cluster_name: str | None = None
    uid: int | None = None
    partition: str
    account: str | None
    gres: str | None
    constraint: str | None
    nodes: int = 1
    cpus_per_task: int
    mem_gib: int
    signal_lead_s: int


class Ledger(_Record):
    """One campaign. ``owner`` is the process that still has jobs to start: submit, then the starter."""

    schema_version: Literal[1] = 1
    campaign: str
    cluster: str
    executor: str
    created: float
    request: list[str]
    resources: Resources
    slurm: Slurm | None = None
    owner: Process | None
    error: str | None = None
    jobs: list[Job]


def ledger_path(root: Path, campaign: str) -> Path:
    """``<root>/.submissions/<campaign>.json``."""
    return root / SUBMISSIONS / f"{campaign}.json"


def submission_folder(path: Path) -> Path:
    """The folder that belongs to the ledger ``path``: submitit's, with our lock and the starter's log."""
    return path.with_suffix("")


def raw_logs(root: Path, ledger: Ledger, job: Job) -> list[Path]:
    """What submitit catches of a job's stderr and stdout, of each of its ranks, outside of the logs of its attempts."""
    folder = submission_folder(ledger_path(root, ledger.campaign))
    ranks = range(ledger.resources.ranks_per_run if ledger.slurm else 1)
    names = [f"{job.job_id}_{rank}_log.{stream}" for rank in ranks for stream in ("err", "out")]
    return [folder / name for name in names] if job.job_id else []


def read_ledger(path: Path) -> Ledger:
    """The record of a campaign.

    Raises:
        LaunchError: it is missing or is not one.
    """
    try:
        values = read_json(path)
    except RunError as error:
        raise LaunchError(str(error)) from None
    if values is None:
        raise LaunchError(f"there is no campaign '{path.stem}' under '{path.parents[1]}'", exit_code=EXIT_WRONG_REQUEST)
    try:
        return Ledger.model_validate(values)
    except pydantic.ValidationError as error:
        first = error.errors(include_url=False)[0]
        where = ".".join(str(part) for part in first["loc"])
        raise LaunchError(f"{path}: is no ledger of this version: '{where}': {first['msg']}") from None


def read_ledgers(root: Path) -> tuple[list[Ledger], list[str]]:
    """All campaigns of a root, oldest first, and one line for each ledger that cannot be read."""
    ledgers, problems = [], []
    for path in (root / SUBMISSIONS).glob("*.json"):
        if path.name == ANSWERS:
            continue
        try:
            ledgers.append(read_ledger(path))
        except LaunchError as error:
            problems.append(str(error))
    return sorted(ledgers, key=lambda ledger: ledger.created), sorted(problems)


def jobs_by_run(ledgers: list[Ledger]) -> dict[str, tuple[Ledger, Job]]:
    """By run id: the campaign and the job that a run belongs to."""
    return {job.run_id: (ledger, job) for ledger in ledgers for job in ledger.jobs}


def find_job(root: Path, run_id: str) -> tuple[Ledger, Job] | tuple[None, None]:
    """The campaign and the job that a run belongs to; none for a run of ``train``."""
    return jobs_by_run(read_ledgers(root)[0]).get(run_id, (None, None))


def is_campaign_id(text: str) -> bool:
    """Whether ``text`` has the form of a campaign id."""
    return _CAMPAIGN_ID.fullmatch(text) is not None
