"""Asking Slurm about all jobs of a root: one question at most every 10 s, by however many readers."""

from __future__ import annotations

import contextlib
import os
import time
from dataclasses import replace
from pathlib import Path

from hpcstab.errors import HpcstabError, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.ledger import locked, updating
from hpcstab.state.answers import Answers, JobAnswer, Scheduled, answers_path, read_answers, write_answers
from hpcstab.state.ledger import Job, Ledger, ledger_path, read_ledgers

MIN_AGE_S = 10.0


def scheduler_answers(root: Path, min_age_s: float | None = None) -> Answers:
    """The answers of the cache, or new ones where these are older and some job has not ended."""
    min_age_s = MIN_AGE_S if min_age_s is None else min_age_s
    known = read_answers(root)
    if time.time() - known.asked < min_age_s:
        return known
    with contextlib.suppress(HpcstabError), locked(answers_path(root).with_suffix(".lock")):
        known = read_answers(root)  # somebody else may have asked while we waited
        if time.time() - known.asked >= min_age_s:
            known = _ask(root, known)
    return known


def _ask(root: Path, known: Answers) -> Answers:
    ledgers = [ledger for ledger in read_ledgers(root)[0] if ledger.executor == "slurm"]
    still_open = [(ledger, job) for ledger in ledgers for job in ledger.jobs if not _has_ended(known, ledger, job)]
    if not still_open:
        return known
    now = time.time()
    found: dict[str, JobAnswer] = {}
    cluster = problem = None
    try:
        found = _look_for(still_open)
        if any(job.job_id not in found for _, job in still_open):
            cluster = scheduler.cluster_name()  # an absence is worth something only if its cluster is known
    except LaunchError as error:
        problem = str(error)
    _reconcile(root, [ledger for ledger, job in still_open if job.job_id is None], found)
    ours = {ledger.campaign for ledger in ledgers}
    new = {job_id: Scheduled(answer, now) for job_id, answer in found.items() if answer.name in ours}
    answers = replace(
        known, asked=now, problem=problem, jobs=known.jobs | new, cluster=cluster, uid=os.getuid() if cluster else None
    )
    write_answers(root, answers)
    return answers


def _has_ended(known: Answers, ledger: Ledger, job: Job) -> bool:
    scheduled = known.of(ledger, job)
    return scheduled is not None and scheduled.has_ended


def _look_for(jobs: list[tuple[Ledger, Job]]) -> dict[str, JobAnswer]:
    """By id; and by name those whose submitter died between sbatch and the ledger, in the queue and in accounting."""
    found = scheduler.job_answers(job.job_id for _, job in jobs if job.job_id)
    shown = {answer.name for answer in found.values()}
    nameless = {ledger.campaign: ledger for ledger, job in jobs if job.job_id is None and ledger.campaign not in shown}
    if nameless:
        since = min(ledger.created for ledger in nameless.values())
        found |= scheduler.ended_jobs_named(nameless, since)
    return found


def _reconcile(root: Path, nameless: list[Ledger], found: dict[str, JobAnswer]) -> None:
    """Write down the ids of jobs whose submitter died between sbatch and its ledger: their name is the campaign's."""
    for ledger in {ledger.campaign: ledger for ledger in nameless}.values():
        own = [answer.job_id for answer in found.values() if answer.name == ledger.campaign]
        if len(ledger.jobs) > 1:
            own = [job_id for job_id in own if "_" in job_id]
        if own:
            with updating(ledger_path(root, ledger.campaign)) as current:
                for job_id in own:
                    job = current.jobs[int(job_id.partition("_")[2] or 0)]
                    job.job_id = job.job_id or job_id
                current.owner = None
