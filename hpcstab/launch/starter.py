"""Starting the jobs of a ledger, by a process of its own: the local starter, or the submission to Slurm."""

from __future__ import annotations

import contextlib
import itertools
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from hpcstab.errors import EXIT_NO_ANSWER, EXIT_WRONG_REQUEST, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.machine import thread_variables
from hpcstab.state.ledger import Ledger, read_ledger, submission_folder

_START_TIMEOUT_S = 60.0
_POLL_S = 0.02


def start_command(path: Path) -> list[str]:
    """The command that starts the jobs of a ledger on this machine."""
    return [sys.executable, "-m", "hpcstab.launch.start", str(path)]


def start_locally(path: Path, ledger: Ledger) -> Ledger:
    """Start the starter and wait until the ledger is its own."""
    log = submission_folder(path) / "starter.log"
    with log.open("ab") as output:
        starter = subprocess.Popen(
            start_command(path),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env={**os.environ, **job_variables(ledger.resources.threads_per_run)},
            start_new_session=True,  # neither Ctrl-C nor the end of the terminal reaches the jobs
        )
    try:
        return _taken_over(path, starter, log)
    except BaseException:
        with contextlib.suppress(ProcessLookupError):
            os.killpg(starter.pid, signal.SIGKILL)  # with all that it may have started
        starter.wait()
        raise
    finally:
        if starter.returncode is None:
            starter.returncode = 0  # it outlives us on purpose: no warning that it still runs


def _taken_over(path: Path, starter: subprocess.Popen[bytes], log: Path) -> Ledger:
    deadline = time.monotonic() + _START_TIMEOUT_S
    while time.monotonic() < deadline:
        has_ended = starter.poll() is not None  # asked before reading: a starter can be done with all its jobs
        ledger = read_ledger(path)
        if ledger.owner is not None and ledger.owner.pid == starter.pid:
            return ledger
        if has_ended:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()
            raise LaunchError(f"the jobs could not be started: {lines[-1] if lines else 'no reason was given'}")
        time.sleep(_POLL_S)
    raise LaunchError(f"the jobs could not be started: no answer in {_START_TIMEOUT_S:.0f} s")


def submit_to_slurm(path: Path, ledger: Ledger) -> Ledger:
    """Queue the jobs as one array; returns with their ids in the ledger.

    Raises:
        LaunchError: sbatch refused, or did not answer in time; nothing of the campaign stays queued.
    """
    command = [sys.executable, "-m", "hpcstab.launch.slurm", str(path)]
    variables = {**scheduler.environment(), **job_variables(ledger.resources.threads_per_run)}
    try:
        done = subprocess.run(
            command,
            env=variables,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=_START_TIMEOUT_S,
            start_new_session=True,  # Ctrl-C must not end it between sbatch and the ledger
        )
    except BaseException as error:
        _take_back(ledger)
        if isinstance(error, subprocess.TimeoutExpired):
            raise LaunchError(f"sbatch did not answer in {_START_TIMEOUT_S:.0f} s", exit_code=EXIT_NO_ANSWER) from None
        raise
    if done.returncode:
        _take_back(ledger)
        lines = done.stdout.strip().splitlines() or ["no reason was given"]
        is_refused = lines[-1].startswith("sbatch: error:") and "contact" not in lines[-1]
        code = EXIT_WRONG_REQUEST if is_refused else EXIT_NO_ANSWER
        raise LaunchError(f"the jobs could not be submitted: {lines[-1]}", exit_code=code)
    return read_ledger(path)


def _take_back(ledger: Ledger) -> None:
    """The ids may be unknown, the name is not."""
    with contextlib.suppress(LaunchError):
        scheduler.cancel_named(ledger.campaign)


def job_variables(threads: int) -> dict[str, str]:
    """Jobs import what this process imports: a folder here that is called like a package is not in their way."""
    library = f"python{sys.version_info.major}{sys.version_info.minor}.zip"  # the first that Python adds by itself
    own = itertools.takewhile(lambda entry: Path(entry).name != library, sys.path)
    path = os.pathsep.join(dict.fromkeys(entry or str(Path.cwd()) for entry in own))
    return {**thread_variables(threads), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
