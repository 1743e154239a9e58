"""The daemons of a lab, one function each: how it is called, and when it counts as started."""

from __future__ import annotations

import os
import re
import socket
import stat
import subprocess
from pathlib import Path

from client import ask, call
from configuration import CLUSTER_NAME
from packages import program
from processes import Daemon, start
from settings import ACCOUNT, GPUS_PER_NODE, Lab, LabError

_DAEMON_S = 20.0
_SET_UP_S = 60.0
_NULL_DEVICE = os.makedev(1, 3)


def require_own_host_name() -> None:
    """Whether daemons can have a host name of their own, which keeps Slurm's ports on loopback.

    Raises:
        LabError: not here.
    """
    command = [program("unshare"), "--uts", "hostname", "localhost"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise LabError(
            f"`unshare --uts` failed ({result.stderr.strip()}): in a container give it the capability SYS_ADMIN, "
            "so that Slurm can be kept on loopback"
        )


def make_devices(lab: Lab) -> None:
    """Device files by which Slurm counts GPUs, all of the null device.

    In the lab's folder: in /dev they would make everything on this machine believe in GPUs.
    """
    for index in range(GPUS_PER_NODE):
        os.mknod(lab.folder / "dev" / f"nvidia{index}", stat.S_IFCHR | 0o600, _NULL_DEVICE)


def start_munge(lab: Lab) -> None:
    """A munged with a key and a socket of its own; another one on this machine is not touched."""
    folder = lab.munge_socket.parent
    _run(program("mungekey"), "--create", f"--keyfile={folder}/key")
    command = (
        program("munged"),
        "--foreground",
        "--force",  # a folder that only root can enter is well: only root's jobs run here
        f"--key-file={folder}/key",
        f"--socket={lab.munge_socket}",
        f"--pid-file={folder}/pid",
        f"--seed-file={folder}/seed",
        f"--log-file={lab.log('munged')}",
    )
    start(lab, Daemon("munged", command), lambda: _accepts(lab.munge_socket), _DAEMON_S)


def start_database(lab: Lab, port: int, password: str) -> None:
    """An empty MariaDB that slurmdbd may fill."""
    data = lab.folder / "database"
    temporary = lab.folder / "spool"  # each server removes what looks temporary there, another lab's too
    _run(
        program("mariadb-install-db"),
        "--no-defaults",
        "--user=root",
        f"--datadir={data}",
        f"--tmpdir={temporary}",
        "--auth-root-authentication-method=normal",
        "--skip-test-db",
    )
    first_statements = lab.folder / "conf" / "first.sql"
    first_statements.touch(mode=0o600)
    first_statements.write_text(
        "CREATE DATABASE slurm_acct_db;\n"
        f"CREATE USER 'slurm'@'127.0.0.1' IDENTIFIED BY '{password}';\n"
        "GRANT ALL ON slurm_acct_db.* TO 'slurm'@'127.0.0.1';\n"
    )
    command = (
        program("mariadbd"),
        "--no-defaults",
        "--user=root",
        f"--datadir={data}",
        f"--tmpdir={temporary}",
        "--bind-address=127.0.0.1",
        f"--port={port}",
        f"--socket={lab.folder}/database.socket",
        f"--pid-file={lab.folder}/spool/mariadbd.pid",
        "--skip-name-resolve",
        "--innodb-buffer-pool-size=64M",
        "--innodb-lock-wait-timeout=900",  # slurmdbd asks for it
        "--innodb-flush-log-at-trx-commit=0",  # nothing here outlives the lab
        f"--init-file={first_statements}",
    )
    start(lab, Daemon("mariadbd", command), lambda: _accepts(("127.0.0.1", port)), _DAEMON_S)


def start_accounting_daemon(lab: Lab) -> None:
    """slurmdbd; its file lies beside slurm.conf."""
    daemon = Daemon("slurmdbd", (program("slurmdbd"), "-D"), own_host_name=True)
    start(lab, daemon, lambda: call(lab, "sacctmgr", "--noheader", "show", "cluster").returncode == 0, _DAEMON_S)


def add_account(lab: Lab) -> None:
    """The cluster, the account, and root as its user: before slurmctld starts, which refuses unknown accounts."""
    ask(lab, "sacctmgr", "--immediate", "add", "cluster", CLUSTER_NAME)
    ask(lab, "sacctmgr", "--immediate", "add", "account", ACCOUNT, f"Cluster={CLUSTER_NAME}")
    # slurmdbd makes root itself, in the account root
    ask(lab, "sacctmgr", "--immediate", "add", "user", "root", f"Account={ACCOUNT}")
    ask(lab, "sacctmgr", "--immediate", "modify", "user", "root", "set", f"DefaultAccount={ACCOUNT}")


def start_controller(lab: Lab, *, clean: bool) -> None:
    """slurmctld; ``clean``: without the state that it saved."""
    command = (program("slurmctld"), "-D", "-f", str(lab.slurm_conf), *(["-c"] if clean else []))
    start(lab, Daemon("slurmctld", command, own_host_name=True), lambda: _controller_answers(lab), _DAEMON_S)


def start_node(lab: Lab, node: str) -> None:
    """The slurmd of a node, on the port that slurm.conf says."""
    found = re.search(rf"^NodeName={node} .*\bPort=(\d+)", lab.slurm_conf.read_text(), re.MULTILINE)
    if found is None:
        raise LabError(f"{lab.slurm_conf} has no port of node {node}")
    port = int(found[1])
    command = (program("slurmd"), "-D", "-N", node, "-f", str(lab.slurm_conf))
    daemon = Daemon(f"slurmd-{node}", command, own_host_name=True)
    start(lab, daemon, lambda: _accepts(("127.0.0.1", port)), _DAEMON_S)


def _controller_answers(lab: Lab) -> bool:
    result = call(lab, "scontrol", "ping")
    return result.returncode == 0 and " is UP" in result.stdout


def _accepts(address: Path | tuple[str, int]) -> bool:
    family = socket.AF_UNIX if isinstance(address, Path) else socket.AF_INET
    with socket.socket(family) as one:
        return one.connect_ex(str(address) if isinstance(address, Path) else address) == 0


def _run(*command: str) -> None:
    result = subprocess.run(command, capture_output=True, text=True, timeout=_SET_UP_S, check=False)
    if result.returncode:
        words = (result.stdout.strip() + "\n" + result.stderr.strip()).splitlines()
        error = next((line for line in words if "ERROR" in line.upper()), " ".join(words[-3:]))
        raise LabError(f"`{' '.join(command)}` failed: {error}")
