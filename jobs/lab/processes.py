"""Daemons of a lab and the processes of its jobs: started, recorded, and ended without ever meeting another's.

A pid alone does not name a process, since pids are used again: its record holds the start time too, and
the command line must name the program.
"""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from settings import NODES, Lab, LabError

_PROC = Path("/proc")
_POLL_S = 0.05
_STOP_S = 15.0
_LINES_SHOWN = 8


@dataclass(frozen=True)
class Daemon:
    """One daemon that stays in the foreground: ``command`` starts with the program's path."""

    name: str
    command: tuple[str, ...]
    own_host_name: bool = False
    """Whether it runs under the host name localhost, so that Slurm binds its ports on loopback only."""

    def arguments(self) -> list[str]:
        if not self.own_host_name:
            return list(self.command)
        return ["unshare", "--uts", "sh", "-c", 'hostname localhost && exec "$@"', "sh", *self.command]


def start(lab: Lab, daemon: Daemon, is_ready: Callable[[], bool], limit_s: float) -> None:
    """Start it and wait until it answers.

    Raises:
        LabError: it ended or did not answer; with the last lines of its log.
    """
    output = lab.log(daemon.name).with_suffix(".out")
    with output.open("ab") as stream:
        process = subprocess.Popen(
            daemon.arguments(),
            env=lab.environment(),
            cwd="/",
            stdin=subprocess.DEVNULL,
            stdout=stream,
            stderr=stream,
            start_new_session=True,
        )
    found = _stat(process.pid)
    record = {"pid": process.pid, "started": found[1] if found else 0, "program": daemon.command[0]}
    lab.process_record(daemon.name).write_text(json.dumps(record))

    def ready_or_dead() -> bool:
        return process.poll() is not None or is_ready()

    if not wait_until(ready_or_dead, limit_s):
        raise LabError(f"{daemon.name} did not answer in {limit_s:.0f} s{last_lines(lab, daemon.name)}")
    if process.poll() is not None:
        raise LabError(f"{daemon.name} ended with status {process.returncode}{last_lines(lab, daemon.name)}")
    process.returncode = 0  # it outlives this command on purpose: no warning about it


def wait_until(condition: Callable[[], bool], limit_s: float) -> bool:
    """Whether the condition came true in time."""
    end = time.monotonic() + limit_s
    while not condition():
        if time.monotonic() > end:
            return False
        time.sleep(_POLL_S)
    return True


def last_lines(lab: Lab, name: str) -> str:
    """The end of what a daemon printed, each line indented; empty where it printed nothing."""
    path = lab.log(name).with_suffix(".out")
    lines = path.read_text(errors="replace").splitlines()[-_LINES_SHOWN:] if path.exists() else []
    return "".join(f"\n    {line}" for line in lines)


def running(lab: Lab, name: str) -> int | None:
    """Pid of a daemon that runs; None where it does not."""
    try:
        record = json.loads(lab.process_record(name).read_text())
    except (FileNotFoundError, ValueError):
        return None
    pid = int(record["pid"])
    found = _stat(pid)
    if found is None or found[0] in "ZX" or found[1] != record["started"]:
        return None
    return pid if str(record["program"]) in _command_line(pid) else None


def recorded(lab: Lab) -> list[str]:
    """Names of the daemons that were started, whether they run or not."""
    return sorted(path.stem for path in (lab.folder / "pids").glob("*.json"))


def stop(lab: Lab, names: Iterable[str], *, at_once: bool = False) -> list[str]:
    """End these daemons together, by TERM and after a while KILL (or ``at_once``); the names of those that ran."""
    pids = {name: pid for name in names if (pid := running(lab, name)) is not None}
    for number in (signal.SIGKILL,) if at_once else (signal.SIGTERM, signal.SIGKILL):
        for name in pids:
            pid = running(lab, name)
            if pid is not None:
                _signal(pid, number)
        if wait_until(lambda: not any(running(lab, name) for name in pids), _STOP_S):
            break
    return list(pids)


def kill_jobs(lab: Lab, nodes: tuple[str, ...] = NODES) -> int:
    """Kill what these nodes started: their step daemons, all below them, and what left that tree."""
    killed: set[int] = set()

    def none_left() -> bool:
        found = set(_job_processes(lab, nodes))
        for pid in found:
            _signal(pid, signal.SIGKILL)
        killed.update(found)
        return not found

    if not wait_until(none_left, _STOP_S):
        raise LabError(f"processes of jobs do not end: {' '.join(map(str, _job_processes(lab, nodes)))}")
    return len(killed)


def _job_processes(lab: Lab, nodes: tuple[str, ...]) -> Iterator[int]:
    parents: dict[int, int] = {}
    ours: set[int] = set()
    for pid in (int(entry.name) for entry in _PROC.iterdir() if entry.name.isdigit()):
        found = _stat(pid)
        if found is None or found[0] in "ZX":
            continue
        parents[pid] = found[2]
        if any(_is_step_daemon(lab, pid, node) or _is_in_job(lab, pid, node) for node in nodes):
            ours.add(pid)
    for pid in parents:
        ancestor = pid
        while ancestor in parents and ancestor not in ours:
            ancestor = parents[ancestor]
        if ancestor in ours and pid != os.getpid():
            yield pid


def _is_step_daemon(lab: Lab, pid: int, node: str) -> bool:
    """Whether it is a slurmstepd that writes the log of this node."""
    try:
        program = (_PROC / str(pid) / "exe").readlink().name
        if not program.startswith("slurmstepd"):  # Debian's is slurmstepd-wlm
            return False
        targets = [handle.readlink() for handle in (_PROC / str(pid) / "fd").iterdir()]
    except OSError:  # gone by now, or a thread of the kernel
        return False
    return lab.log(f"slurmd-{node}") in targets


def _is_in_job(lab: Lab, pid: int, node: str) -> bool:
    """Whether its environment is that of a job on this node."""
    try:
        variables = (_PROC / str(pid) / "environ").read_bytes().split(b"\0")
    except OSError:
        return False
    return f"SLURM_CONF={lab.slurm_conf}".encode() in variables and f"SLURMD_NODENAME={node}".encode() in variables


def _signal(pid: int, number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.kill(pid, number)


def _stat(pid: int) -> tuple[str, int, int] | None:
    """State letter, start time in clock ticks since boot, parent's pid; None where there is no such process."""
    try:
        text = (_PROC / str(pid) / "stat").read_text()
    except OSError:
        return None
    fields = text.rpartition(")")[2].split()  # a program's name may hold spaces and parentheses
    return fields[0], int(fields[19]), int(fields[1])


def _command_line(pid: int) -> list[str]:
    try:
        return (_PROC / str(pid) / "cmdline").read_bytes().decode(errors="replace").split("\0")
    except OSError:
        return []
