"""The only place that runs Slurm's commands: argument lists, a time limit on each, an environment of our own.

What a command does not mention is not known: no function here takes absence for an answer.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime

from hpcstab.errors import EXIT_NO_ANSWER, LaunchError
from hpcstab.state.answers import JobAnswer

_LIMIT_S = 20.0
_PING_S = 5.0
_CLOCKS_S = 60.0  # that of the controller may be behind
_SQUEUE = "%i|%T|%r|%S|%L|%N|%j"  # the name last: it may hold a |
_SACCT = "JobID,State,Start,NodeList,ExitCode,JobName"
_UNSET = ("", "N/A", "None", "Unknown", "None assigned", "(null)")
_ONE_JOB = re.compile(r"\d+(_\d+)?")
# set for a job or an allocation, they would change what a command started inside it does or prints
_OF_SLURM = ("SLURM_", "SBATCH_", "SQUEUE_", "SACCT_", "SCANCEL_", "SCONTROL_", "SRUN_")


def environment() -> dict[str, str]:
    """Ours without settings of Slurm, but for where its controller is: also for a submission from inside a job."""
    kept = {name: value for name, value in os.environ.items() if not name.startswith(_OF_SLURM)}
    if "SLURM_CONF" in os.environ:
        kept["SLURM_CONF"] = os.environ["SLURM_CONF"]
    return kept | {"LC_ALL": "C", "SLURM_TIME_FORMAT": "standard", "SLURM_BITSTR_LEN": "0"}


def job_answers(job_ids: Iterable[str], accounting: bool = True) -> dict[str, JobAnswer]:
    """What Slurm says about these jobs of ours, and about all others of ours that it still shows.

    One ``squeue`` for all; ``sacct`` once for those that squeue no longer knows, where there is accounting.

    Raises:
        LaunchError: squeue is missing or the controller does not answer.
    """
    text = _ask("squeue", "-h", "-r", "-t", "all", "-u", str(os.getuid()), "-o", _SQUEUE)
    answers = _parse_squeue(text)
    aged_out = sorted({job_id for job_id in job_ids if _ONE_JOB.fullmatch(job_id)} - set(answers))
    if aged_out and accounting:
        # -D: all attempts, of which the last row counts; a failure means no accounting, never that a job is gone
        arrays = ",".join(sorted({job_id.partition("_")[0] for job_id in aged_out}))
        done = _run("sacct", "-X", "-n", "-P", "-D", "-j", arrays, "-o", _SACCT)
        found = _parse_sacct(done.stdout if done.returncode == 0 else "")
        answers |= {job_id: found[job_id] for job_id in aged_out if job_id in found}
    return answers


def ended_jobs_named(names: Iterable[str], since: float) -> dict[str, JobAnswer]:
    """What accounting knows of jobs with these names, submitted after ``since``; nothing where there is none."""
    start = datetime.fromtimestamp(since - _CLOCKS_S).strftime("%Y-%m-%dT%H:%M:%S")
    done = _run("sacct", "-X", "-n", "-P", "-D", f"--name={','.join(sorted(names))}", "-S", start, "-o", _SACCT)
    return _parse_sacct(done.stdout if done.returncode == 0 else "")


def time_left_s(job_id: str) -> float | None:
    """Seconds until the job's time limit; None where Slurm does not know or it has none."""
    done = _run("squeue", "-h", "-j", job_id, "-o", "%L")
    return parse_duration_s(done.stdout) if done.returncode == 0 else None


def job_state(job_id: str) -> str | None:
    """The job's state as squeue names it; None where it does not say."""
    done = _run("squeue", "-h", "-j", job_id, "-o", "%T")
    return (done.stdout.strip() or None) if done.returncode == 0 else None


def requeue(job_id: str) -> None:
    """Let a running job end and be queued again."""
    _ask("scontrol", "requeue", job_id)


def cancel_jobs(job_ids: Sequence[str]) -> None:
    """Cancel jobs; those that have ended already are no error."""
    if job_ids:
        _ask("scancel", "--quiet", *job_ids)


def cancel_named(name: str) -> None:
    """Cancel all jobs of ours with this name: of a submission whose job ids nobody wrote down."""
    _ask("scancel", "--quiet", "-u", str(os.getuid()), f"--name={name}")


@dataclass(frozen=True)
class PartitionLimits:
    """What a partition allows; ``time_limit_min`` None: as long as one wants."""

    name: str
    time_limit_min: float | None


def partition_limits(name: str) -> PartitionLimits | None:
    """The limits of a partition; None where there is none of this name."""
    done = _run("scontrol", "-o", "show", "partition", name)
    if done.returncode:
        if "not found" in done.stderr + done.stdout:
            return None
        raise _failed(("scontrol",), done)
    longest = parse_duration_s(_fields(done.stdout).get("MaxTime", ""))
    return PartitionLimits(name, None if longest is None else longest / 60)


def partition_names() -> list[str]:
    """All partitions, sorted."""
    return sorted(set(_ask("sinfo", "-h", "-o", "%R").split()))


def node_addresses(partition: str) -> list[str]:
    """Host names and addresses of the nodes of a partition."""
    return _ask("sinfo", "-h", "-p", partition, "-o", "%n %o").split()


def node_address(node: str) -> str:
    """Where Slurm reaches a node: its NodeAddr."""
    address = _fields(_ask("scontrol", "-o", "show", "node", node)).get("NodeAddr")
    if not address:
        raise LaunchError(f"Slurm does not say at which address node '{node}' is")
    return address


def ping() -> None:
    """Raise a LaunchError where there is no Slurm here or its controller does not answer in 5 s."""
    done = _run("scontrol", "ping", limit_s=_PING_S)
    if done.returncode or " is UP" not in done.stdout:
        raise _failed(("scontrol", "ping"), done)


def cluster_name() -> str:
    """Slurm's own name of the cluster."""
    found = re.search(r"(?m)^ClusterName\s*=\s*(\S+)", _ask("scontrol", "show", "config"))
    if found is None:
        raise LaunchError("Slurm does not say how its cluster is called; name one with --cluster")
    return found[1]


def parse_duration_s(text: str) -> float | None:
    """Seconds in ``1-02:03:04``, ``2:03:04`` or ``3:04``; None for UNLIMITED, NOT_SET and the like."""
    days, _, clock = text.strip().rpartition("-")
    parts = clock.split(":")
    if len(parts) not in (2, 3) or not all(part.isdigit() for part in (*parts, days or "0")):
        return None
    seconds = 0
    for part in parts:
        seconds = 60 * seconds + int(part)
    return float(86400 * int(days or 0) + seconds)


def expand_job_ids(text: str) -> list[str]:
    """``12_[1-2,4%2]`` as 12_1, 12_2, 12_4: tasks that were cancelled in the queue stay one row, even with -r."""
    array, bracket, tasks = text.partition("_[")
    if not bracket:
        return [text]
    expanded = []
    for part in tasks.rstrip("]").partition("%")[0].split(","):
        first, _, last = part.partition("-")
        last = last or first
        if first.isdigit() and last.isdigit():
            expanded += [f"{array}_{task}" for task in range(int(first), int(last) + 1)]
    return expanded


def _parse_squeue(text: str) -> dict[str, JobAnswer]:
    answers = {}
    for line in text.splitlines():
        if line.count("|") >= 6:
            job_id, state, reason, start, _, node, name = line.split("|", 6)
            for one in expand_job_ids(job_id):
                answers[one] = JobAnswer(one, name, state, _given(reason), _given(start), _given(node), "squeue")
    return answers


def _parse_sacct(text: str) -> dict[str, JobAnswer]:
    answers = {}
    for line in text.splitlines():
        if line.count("|") >= 5:
            job_id, state, start, node, code, name = line.split("|", 5)
            # "CANCELLED by 1000"; the rows of one job come in the order of its attempts
            words = state.split() or ["UNKNOWN"]
            for one in expand_job_ids(job_id):
                answers[one] = JobAnswer(one, name, words[0], None, _given(start), _given(node), "sacct", _given(code))
    return answers


def _given(text: str) -> str | None:
    return None if text in _UNSET else text


def _fields(text: str) -> Mapping[str, str]:
    return dict(word.split("=", 1) for word in text.split() if "=" in word)


def _ask(*command: str) -> str:
    done = _run(*command)
    if done.returncode:
        raise _failed(command, done)
    return done.stdout


def _run(*command: str, limit_s: float = _LIMIT_S) -> subprocess.CompletedProcess[str]:
    """Run a command of Slurm, whatever it answers."""
    try:
        return subprocess.run(
            command, env=environment(), stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=limit_s
        )
    except FileNotFoundError:
        raise LaunchError(
            f"there is no {command[0]} here; submit on a login node of a Slurm cluster, or with --cluster local",
            exit_code=EXIT_NO_ANSWER,
        ) from None
    except subprocess.TimeoutExpired:
        raise LaunchError(
            f"Slurm's controller does not answer: {' '.join(command[:2])} took over {limit_s:.0f} s; try again later",
            exit_code=EXIT_NO_ANSWER,
        ) from None


def _failed(command: Sequence[str], done: subprocess.CompletedProcess[str]) -> LaunchError:
    lines = (done.stderr.strip() or done.stdout.strip() or f"status {done.returncode}").splitlines()
    if any("configuration source" in line or "configuration file" in line for line in lines):
        return LaunchError(
            "there is no Slurm here: its commands find no slurm.conf; use a login node, or set SLURM_CONF"
        )
    unreachable = ("Unable to contact", "DOWN", "Connection refused", "Socket timed out")
    if any(word in line for line in lines for word in unreachable):
        return LaunchError(f"Slurm's controller does not answer: {lines[-1]}; try again later")
    return LaunchError(f"{' '.join(command[:2])}: {lines[-1]}")
