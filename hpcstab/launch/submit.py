"""Planned runs -> run folders, a ledger, a starter that starts them as jobs."""

from __future__ import annotations

import contextlib
import itertools
import os
import shlex
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

from hpcstab.campaign import PlannedRun
from hpcstab.errors import EXIT_WRONG_REQUEST, LaunchError
from hpcstab.launch.clusters import Cluster, gpus_per_run, parallel_runs, refuse_unusable
from hpcstab.launch.folders import RunFolders
from hpcstab.launch.ledger import (
    Job,
    Ledger,
    Resources,
    claim_campaign,
    ledger_path,
    read_ledger,
    submission_folder,
    write_ledger,
)
from hpcstab.launch.machine import Process, gpu_devices, thread_variables

_START_TIMEOUT_S = 60.0
_POLL_S = 0.02


def submit(
    planned: list[PlannedRun],
    name: str,
    cluster: Cluster,
    root: Path,
    configs: Path | None = None,
    request: tuple[str, ...] = (),
) -> Ledger:
    """Start a campaign; returns once the starter has taken it over.

    Args:
        planned: at least one run.
        name: of the model or the campaign; the campaign id begins with it.
        request: the command line, for the record.

    Raises:
        LaunchError: the cluster cannot be used from here, or the starter did not start.
        RunError: the root cannot be written. Whatever the error, nothing of the campaign stays.
    """
    refuse_unusable(cluster)
    root = _checked(root)
    folders = RunFolders(root, planned)
    path = None
    try:
        campaign = claim_campaign(root, name)
        path = ledger_path(root, campaign)
        run_ids = folders.create(campaign, submission_folder(path) / "staged", configs)
        ledger = _intent(campaign, cluster, run_ids, request)
        write_ledger(path, ledger)
        return _start(path, ledger)
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
            shutil.rmtree(submission_folder(path), ignore_errors=True)
        folders.take_back()
        raise


def start_command(path: Path) -> list[str]:
    """The command that starts the jobs of a ledger."""
    return [sys.executable, "-m", "hpcstab.launch.start", str(path)]


def shown_command(root: Path, name: str, cluster: Cluster) -> str:
    """What ``submit`` would run, as a shell would take it."""
    path = ledger_path(_checked(root), f"{name}_YYYYMMDD_HHMMSS")
    variables = " ".join(f"{key}={value}" for key, value in thread_variables(cluster.threads_per_run).items())
    return f"{variables} {shlex.join(start_command(path))}"


def _checked(root: Path) -> Path:
    root = root.resolve()
    # % stands for job numbers in submitit's and Slurm's paths
    if not str(root).isprintable() or "%" in str(root):
        raise LaunchError(
            f"run root {str(root)!r}: a control character or % is not allowed; choose another --root",
            exit_code=EXIT_WRONG_REQUEST,
        )
    return root


def _intent(campaign: str, cluster: Cluster, run_ids: list[str], request: tuple[str, ...]) -> Ledger:
    count = gpus_per_run(cluster)
    devices = gpu_devices()
    return Ledger(
        campaign=campaign,
        cluster=cluster.name,
        executor=cluster.executor,
        created=time.time(),
        request=list(request),
        resources=Resources(
            parallel_runs=parallel_runs(cluster),
            threads_per_run=cluster.threads_per_run,
            gpus_per_run=count,
            devices=devices,
            time_limit_s=60 * cluster.time_limit_min,
        ),
        owner=Process.current(),
        jobs=[Job(index=index, run_id=run_id) for index, run_id in enumerate(run_ids)],
    )


def _start(path: Path, ledger: Ledger) -> Ledger:
    """Start the starter and wait until the ledger is its own."""
    log = submission_folder(path) / "starter.log"
    with log.open("ab") as output:
        starter = subprocess.Popen(
            start_command(path),
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=_starter_environment(ledger.resources.threads_per_run),
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


def _starter_environment(threads: int) -> dict[str, str]:
    """Jobs import what this process imports: a folder here that is called like a package is not in their way."""
    library = f"python{sys.version_info.major}{sys.version_info.minor}.zip"  # the first that Python adds by itself
    own = itertools.takewhile(lambda entry: Path(entry).name != library, sys.path)
    path = os.pathsep.join(entry or str(Path.cwd()) for entry in own)
    return {**os.environ, **thread_variables(threads), "PYTHONPATH": path, "PYTHONSAFEPATH": "1"}
