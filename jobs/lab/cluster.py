"""Starting and stopping a lab, all or nothing, and what runs in it."""

from __future__ import annotations

import secrets
import shutil
import socket
from collections.abc import Iterator
from contextlib import contextmanager

from client import ask, call, node_states
from configuration import free_ports, write_configuration
from packages import install_packages
from processes import kill_jobs, last_lines, recorded, running, stop, wait_until
from services import (
    add_account,
    make_devices,
    require_own_host_name,
    start_accounting_daemon,
    start_controller,
    start_database,
    start_munge,
    start_node,
)
from settings import ACCOUNT, NODES, Lab, LabError, Switches

_NODES_S = 20.0


def start_lab(lab: Lab, switches: Switches) -> str:
    """Bring it up with these switches, whole and empty; one that is so already is left alone, with its jobs."""
    install_packages(switches.accounting)
    require_own_host_name()
    with _alone(lab):
        before = lab.switches()
        if before == switches and _is_whole(lab):
            return f"the lab is up already: {switches}; {lab.folder}"
        if before is not None:
            _stop_and_remove(lab)
        lab.create(switches)
        try:
            _start_all(lab, switches)
        except BaseException:
            _stop_and_remove(lab)
            raise
    up = "up" if before is None else "up again, without its former jobs"
    return f"the lab is {up}: nodes {' and '.join(NODES)} idle, {switches}; {lab.folder}"


def stop_lab(lab: Lab) -> str:
    """End all that it started and remove its folder; nothing to do where there is none."""
    if lab.switches() is None:
        return f"no lab in {lab.folder}"
    with _alone(lab):
        num_daemons, num_killed = _stop_and_remove(lab)
    jobs = f", {num_killed} processes of jobs killed" if num_killed else ""
    return f"the lab is down: {num_daemons} daemons stopped{jobs}, {lab.folder} removed"


def show_status(lab: Lab) -> str:
    """Daemons, partitions, nodes and jobs, as lines."""
    switches = lab.require_up()
    lines = [f"lab {lab.folder}: {switches}"]
    for name in recorded(lab):
        pid = running(lab, name)
        lines.append(f"  {name:<12} {f'pid {pid}' if pid else 'does not run'}")
    for command in (
        ("sinfo", "--format=%12N %18P %10T %14C %10G"),
        ("squeue", "--format=%12i %14P %12j %12T %10M %10l %R"),
    ):
        result = call(lab, *command)
        lines += (result.stdout.rstrip() or result.stderr.rstrip()).splitlines()
    return "\n".join(lines)


def _is_whole(lab: Lab) -> bool:
    """Whether all daemons run and the controller answers: a lab with a fault in it is not whole."""
    names = recorded(lab)
    states = node_states(lab)
    return (
        bool(names)
        and all(running(lab, name) for name in names)
        and set(states) == set(NODES)
        and not any(state.startswith(("down", "drain", "unknown")) for state in states.values())
    )


def _start_all(lab: Lab, switches: Switches) -> None:
    ports = free_ports()
    password = secrets.token_hex(16)
    write_configuration(lab, switches, ports, password)
    make_devices(lab)
    start_munge(lab)
    if switches.accounting:
        start_database(lab, ports["mariadbd"], password)
        start_accounting_daemon(lab)
        add_account(lab)
    start_controller(lab, clean=True)
    for node in NODES:
        start_node(lab, node)
    if not wait_until(lambda: node_states(lab) == dict.fromkeys(NODES, "idle"), _NODES_S):
        logs = "".join(last_lines(lab, name) for name in ("slurmctld", *(f"slurmd-{node}" for node in NODES)))
        raise LabError(f"nodes are {node_states(lab)} after {_NODES_S:.0f} s{logs}")
    ask(lab, "sbatch", "--test-only", f"--account={ACCOUNT}", "--gres=gpu:a100:1", "--mem=100", "--wrap=true")


def _stop_and_remove(lab: Lab) -> tuple[int, int]:
    """Number of daemons stopped, and of jobs' processes killed."""
    names = recorded(lab)
    stopped = stop(lab, [name for name in names if name.startswith(("slurmctld", "slurmd-"))])
    num_killed = kill_jobs(lab)
    for name in ("slurmdbd", "mariadbd", "munged"):
        stopped += stop(lab, [name])
    survivors = [name for name in names if running(lab, name)]
    if survivors:
        raise LabError(f"still running: {', '.join(survivors)}; {lab.folder} is kept")
    shutil.rmtree(lab.folder)
    return len(stopped), num_killed


@contextmanager
def _alone(lab: Lab) -> Iterator[None]:
    """Refuse a second start or stop of the same lab while one is under way.

    The lock is an abstract socket: it leaves no file, and the kernel drops it with this process.
    """
    with socket.socket(socket.AF_UNIX) as lock:
        try:
            lock.bind(f"\0hpcstab-lab {lab.folder}")
        except OSError:
            raise LabError(f"another lab.py is starting or stopping {lab.folder} right now") from None
        yield
