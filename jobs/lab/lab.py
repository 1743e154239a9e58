"""A real Slurm on this machine, for tests and for trying things: start it, stop it, inject faults.

Stand-alone: ``python jobs/lab/lab.py VERB``, standard library only. See README.md in this folder.
"""

from __future__ import annotations

import argparse
import os
import shlex
import sys
import time
from collections.abc import Callable

import faults
from cluster import show_status, start_lab, stop_lab
from packages import install_packages
from settings import Lab, LabError, Switches

Verb = Callable[[Lab, argparse.Namespace], str]


def _up(lab: Lab, options: argparse.Namespace) -> str:
    return start_lab(lab, Switches(accounting=options.accounting, user_signal=options.user_signal))


def _install(lab: Lab, options: argparse.Namespace) -> str:
    install_packages(accounting=True)
    return "all that the lab needs is installed"


def _down(lab: Lab, options: argparse.Namespace) -> str:
    return stop_lab(lab)


def _status(lab: Lab, options: argparse.Namespace) -> str:
    return show_status(lab)


def _env(lab: Lab, options: argparse.Namespace) -> str:
    lab.require_up()
    return f"export SLURM_CONF={shlex.quote(str(lab.slurm_conf))}"


def _preempt(lab: Lab, options: argparse.Namespace) -> str:
    return faults.preempt(lab, options.job, wait=options.wait)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="lab.py", description="A real Slurm on this machine. Folder: HPCSTAB_LAB.")
    verbs = parser.add_subparsers(metavar="VERB", required=True)

    def add(name: str, run: Verb, about: str) -> argparse.ArgumentParser:
        verb = verbs.add_parser(name, help=about, description=about)
        verb.set_defaults(run=run)
        return verb

    up = add("up", _up, "start it; does nothing where it runs with the same switches")
    up.add_argument("--accounting", action=argparse.BooleanOptionalAction, default=True, help="slurmdbd on MariaDB")
    up.add_argument("--user-signal", action="store_true", help="SlurmctldParameters=preempt_send_user_signal")
    add("install", _install, "install with apt-get what `up` needs and is missing; `up` does it too")
    add("down", _down, "stop it and remove its folder")
    add("status", _status, "what runs: daemons, partitions, nodes, jobs")
    add("env", _env, 'for a shell: eval "$(python jobs/lab/lab.py env)"')
    preempt = add("preempt", _preempt, "let Slurm preempt a running job for a short one of a higher partition")
    preempt.add_argument("job", metavar="JOBID")
    preempt.add_argument(
        "--no-wait", dest="wait", action="store_false", help="return when it begins (GraceTime), not when it is done"
    )
    _add_faults(add)
    return parser


def _add_faults(add: Callable[[str, Verb, str], argparse.ArgumentParser]) -> None:
    """The verbs that take a job, a node or nothing, and nothing else."""
    for name, on_job, about in (
        ("requeue", faults.requeue, "end a running job and queue it again"),
        ("release", faults.release, "lift the hold of about 120 s after a requeue"),
        ("suspend", faults.suspend, "stop a job's processes"),
        ("resume", faults.resume, "let a suspended job go on"),
    ):
        add(name, _for_job(on_job), about).add_argument("job", metavar="JOBID")
    for name, on_node, about in (
        ("node-down", faults.node_down, "a node fails: its jobs get NODE_FAIL and are queued again"),
        ("node-up", faults.node_up, "the node comes back"),
    ):
        add(name, _for_node(on_node), about).add_argument("node", metavar="NODE")
    for name, on_lab, about in (
        ("restart-controller", faults.restart_controller, "stop slurmctld and start it with its saved state"),
        ("controller-off", faults.controller_off, "stop slurmctld: Slurm does not answer, jobs go on"),
        ("controller-on", faults.controller_on, "start slurmctld with its saved state"),
        ("accounting-off", faults.accounting_off, "stop slurmdbd: sacct fails, squeue works"),
        ("accounting-on", faults.accounting_on, "start slurmdbd again"),
    ):
        add(name, _for_lab(on_lab), about)


def _for_job(act: Callable[[Lab, str], str]) -> Verb:
    return lambda lab, options: act(lab, options.job)


def _for_node(act: Callable[[Lab, str], str]) -> Verb:
    return lambda lab, options: act(lab, options.node)


def _for_lab(act: Callable[[Lab], str]) -> Verb:
    return lambda lab, options: act(lab)


def main() -> int:
    """Exit codes: 0 done, 2 the request is wrong, 3 it cannot be done here."""
    options = _parser().parse_args()
    only_looks = options.run in (_status, _env)
    started = time.monotonic()
    try:
        lab = Lab.from_environment()
        if os.geteuid() and not only_looks:
            raise LabError("the lab needs root: Slurm's node daemon starts jobs as their users")
        message = options.run(lab, options)
    except LabError as error:
        print(f"lab: {error}", file=sys.stderr)
        return error.exit_code
    except OSError as error:  # its folder cannot be written, a program cannot be run
        print(f"lab: {error}", file=sys.stderr)
        return LabError.exit_code
    print(message if only_looks else f"{message} ({time.monotonic() - started:.1f} s)")
    return 0


if __name__ == "__main__":
    sys.exit(main())
