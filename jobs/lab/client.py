"""Slurm's own commands against the lab, and what they say about a job or a node."""

from __future__ import annotations

import re
import subprocess
from dataclasses import dataclass

from packages import program
from settings import NODES, Lab, LabError, RequestError

_LIMIT_S = 30
_JOB_ID = re.compile(r"[1-9][0-9]*(_[0-9]+)?")


@dataclass(frozen=True)
class Job:
    """One job as ``scontrol`` shows it. ``state`` is e.g. RUNNING; ``cpus``: by node."""

    job_id: str
    state: str
    reason: str
    restarts: int
    partition: str
    cpus: dict[str, int]
    preempt_time: str


def call(lab: Lab, *command: str) -> subprocess.CompletedProcess[str]:
    """Run one of Slurm's commands, whatever it answers; the caller's own Slurm settings do not reach it.

    Raises:
        LabError: it did not answer in time.
    """
    arguments = [program(command[0]), *command[1:]]
    try:
        return subprocess.run(
            arguments, env=lab.environment(), capture_output=True, text=True, timeout=_LIMIT_S, check=False, cwd="/"
        )
    except subprocess.TimeoutExpired:
        raise LabError(f"`{' '.join(command)}` did not answer in {_LIMIT_S} s") from None


def ask(lab: Lab, *command: str) -> str:
    """What the command prints.

    Raises:
        LabError: it failed.
    """
    result = call(lab, *command)
    if result.returncode:
        words = (result.stderr.strip() or result.stdout.strip() or f"status {result.returncode}").splitlines()
        raise LabError(f"`{' '.join(command)}`: {words[-1]}")
    return result.stdout.strip()


def read_job(lab: Lab, job_id: str) -> Job:
    """One job.

    Raises:
        RequestError: no such job, or the id is that of a whole array.
    """
    lab.require_up()
    if not _JOB_ID.fullmatch(job_id):
        raise RequestError(f"got job id {job_id!r}; allowed are 123 and 123_4")
    result = call(lab, "scontrol", "--details", "show", "job", job_id)
    if result.returncode:
        words = result.stderr.strip()
        error = RequestError if "Invalid job id" in words else LabError
        raise error(f"job {job_id}: {words}")
    records = result.stdout.strip().split("\n\n")
    if len(records) > 1:
        raise RequestError(f"job {job_id} is an array of {len(records)}; name one element, e.g. {job_id}_0")
    return _parse_job(records[0])


def _parse_job(record: str) -> Job:
    head, _, rest = record.partition("\n")  # the head holds the job's name, which may look like anything
    values: dict[str, str] = {}
    for name, value in re.findall(r"(\w+)=(\S*)", rest):
        values.setdefault(name, value)
    cpus = {
        node: sum(_count(cpu_range) for cpu_range in cpu_ids.split(","))
        for nodes, cpu_ids in re.findall(r"^\s+Nodes=(\S+) CPU_IDs=(\S+)", rest, re.MULTILINE)
        for node in NODES
        if node in nodes or nodes == f"n[1-{len(NODES)}]"
    }
    return Job(
        job_id=head.split()[0].removeprefix("JobId="),
        state=values["JobState"],
        reason=values.get("Reason", "None"),
        restarts=int(values.get("Restarts", "0")),
        partition=values["Partition"],
        cpus=cpus,
        preempt_time=values.get("PreemptTime", "None"),
    )


def _count(cpu_range: str) -> int:
    first, _, last = cpu_range.partition("-")
    return int(last or first) - int(first) + 1


def node_states(lab: Lab) -> dict[str, str]:
    """State of each node, e.g. ``{"n1": "idle", "n2": "mixed"}``; empty where the controller does not answer."""
    answer = call(lab, "sinfo", "--noheader", "--Node", "--format=%N %T")
    return dict(line.split() for line in answer.stdout.splitlines() if len(line.split()) == 2)


def free_cpus(lab: Lab, node: str) -> int:
    """CPUs of a node that no job holds."""
    counts = ask(lab, "sinfo", "--noheader", f"--nodes={node}", "--format=%C").splitlines()[0]
    return int(counts.split("/")[1])  # allocated/idle/other/total
