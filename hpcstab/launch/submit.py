"""Planned runs -> run folders, a ledger, and then jobs: here by a starter, on Slurm as an array."""

from __future__ import annotations

import os
import shlex
import shutil
import time
from pathlib import Path

from hpcstab.campaign import PlannedRun
from hpcstab.errors import EXIT_WRONG_REQUEST, ConfigError, LaunchError
from hpcstab.launch import scheduler
from hpcstab.launch.clusters import (
    Cluster,
    gpus_per_run,
    nodes_per_run,
    parallel_runs,
    ranks_per_run,
    refuse_unusable,
)
from hpcstab.launch.folders import RunFolders
from hpcstab.launch.ledger import claim_campaign, write_ledger
from hpcstab.launch.machine import gpu_devices, thread_variables
from hpcstab.launch.starter import start_command, start_locally, submit_to_slurm
from hpcstab.launch.visibility import refuse_hidden_folders
from hpcstab.state.ledger import Job, Ledger, Resources, Slurm, ledger_path, submission_folder
from hpcstab.state.process import Process


def submit(
    planned: list[PlannedRun],
    name: str,
    cluster: Cluster,
    root: Path,
    configs: Path | None = None,
    request: tuple[str, ...] = (),
) -> Ledger:
    """Start a campaign; returns once the starter has taken it over, or Slurm has its jobs.

    Args:
        planned: at least one run.
        name: of the model or the campaign; the campaign id begins with it.
        request: the command line, for the record.

    Raises:
        LaunchError: the cluster cannot be used from here, its nodes do not see a folder that the jobs need, the
            starter did not start, or sbatch refused.
        RunError: the root cannot be written. Whatever the error, nothing of the campaign stays.
    """
    refuse_unusable(cluster)
    root = _checked(root)
    refuse_hidden_folders(cluster, root)
    folders = RunFolders(root, planned)
    path = None
    try:
        campaign = claim_campaign(root, name)
        path = ledger_path(root, campaign)
        run_ids = folders.create(campaign, submission_folder(path) / "staged", configs)
        ledger = _intent(campaign, cluster, run_ids, request)
        if ledger.slurm:
            ledger.slurm = ledger.slurm.model_copy(
                update={"cluster_name": scheduler.cluster_name(), "uid": os.getuid()}
            )
        write_ledger(path, ledger)
        return submit_to_slurm(path, ledger) if ledger.slurm else start_locally(path, ledger)
    except BaseException:
        if path is not None:
            path.unlink(missing_ok=True)
            shutil.rmtree(submission_folder(path), ignore_errors=True)
        folders.take_back()
        raise


def refuse_unequal_shares(planned: list[PlannedRun], num_ranks: int) -> None:
    """Refuse batches that the ranks of a run cannot share equally, before anything is queued.

    Raises:
        ConfigError: names the run and the size.
    """
    for run in planned:
        config = run.resolved.config
        parts = num_ranks * config.trainer.micro_batches
        if num_ranks > 1 and config.data.batch_size % parts:
            raise ConfigError(
                f"{run.resolved.model}@{run.resolved.label}: data.batch_size {config.data.batch_size} cannot be shared"
                f" equally by {num_ranks} ranks with {config.trainer.micro_batches} trainer.micro_batches each; a"
                f" multiple of {parts} can: --set data.batch_size={parts}"
            )


def shown_command(root: Path, name: str, cluster: Cluster) -> str:
    """What ``submit`` would run on this machine, as a shell would take it."""
    path = ledger_path(_checked(root), f"{name}_YYYYMMDD_HHMMSS")
    variables = " ".join(f"{key}={value}" for key, value in thread_variables(cluster.threads_per_run).items())
    return f"{variables} {shlex.join(start_command(path))}"


def shown_script(root: Path, name: str, cluster: Cluster, num_runs: int) -> str:
    """What ``submit`` would hand to sbatch, to the letter but for the time in the campaign's id."""
    from hpcstab.launch.slurm import batch_script

    campaign = f"{name}_YYYYMMDD_HHMMSS"
    return batch_script(ledger_path(_checked(root), campaign), _intent(campaign, cluster, [""] * num_runs, ()))


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
    return Ledger(
        campaign=campaign,
        cluster=cluster.name,
        executor=cluster.executor,
        slurm=_slurm(cluster, count),
        created=time.time(),
        request=list(request),
        resources=Resources(
            parallel_runs=parallel_runs(cluster),
            threads_per_run=cluster.threads_per_run,
            gpus_per_run=count,
            ranks_per_run=ranks_per_run(cluster),
            devices=None if cluster.slurm else gpu_devices(),  # Slurm shows a job its own
            time_limit_s=60 * cluster.time_limit_min,
        ),
        owner=Process.current(),
        jobs=[Job(index=index, run_id=run_id) for index, run_id in enumerate(run_ids)],
    )


def _slurm(cluster: Cluster, num_gpus: int) -> Slurm | None:
    settings = cluster.slurm
    if settings is None:
        return None
    nodes = nodes_per_run(cluster)
    return Slurm(
        partition=settings.partition,
        account=settings.account,
        gres=f"{settings.gres}:{num_gpus // nodes}" if num_gpus else None,
        constraint=settings.constraint,
        nodes=nodes,
        cpus_per_task=settings.cpus_per_task,
        mem_gib=settings.mem_gib,
        signal_lead_s=settings.signal_lead_s,
    )
