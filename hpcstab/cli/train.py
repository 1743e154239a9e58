"""``hpcstab train MODEL@VARIANT | --resume RUN``: one run, here, in this process."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.data import refuse_missing_data
from hpcstab.cli.options import DEFAULT_ROOT, Configs, Root, Scale, Settings
from hpcstab.cli.show import split_target
from hpcstab.errors import EXIT_BAD_NEWS, ConfigError

if TYPE_CHECKING:
    from hpcstab.launch.clusters import Cluster
    from hpcstab.rundir import RunDir


def train(
    target: Annotated[
        str | None, typer.Argument(metavar="[MODEL@VARIANT]", help="e.g. swae3d@cured", show_default=False)
    ] = None,
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data, initialisation and order.")] = 0,
    scale: Scale = None,
    settings: Settings = None,
    resume: Annotated[
        str | None,
        typer.Option("--resume", metavar="RUN", help="Go on with a run, as a new attempt.", show_default=False),
    ] = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
) -> None:
    """Train one run here, in this process; a diverged run is a result (exit 0).

    Scale, threads and ranks are those of a job on the cluster that `submit` would take; OMP_NUM_THREADS overrides, and
    --resume takes as many ranks as the run had.
    """
    from hpcstab.launch.attempt import run_attempt
    from hpcstab.launch.clusters import choose_cluster
    from hpcstab.launch.machine import thread_variables
    from hpcstab.launch.rank_processes import other_ranks
    from hpcstab.launch.signals import StopSignals

    cluster = choose_cluster(None, configs)
    for name, value in thread_variables(cluster.threads_per_run).items():
        os.environ.setdefault(name, value)  # as many as a job gets: the sums of a run depend on it, to the bit
    if (target is None) == (resume is None):
        raise ConfigError("train wants MODEL@VARIANT or --resume RUN, one of the two; e.g. swae3d@before")
    if resume is not None:
        if scale or settings or seed:
            raise ConfigError("--resume goes on with a run as it is; leave --seed, --scale and --set away")
        run = _resumable(resume, root)
    else:
        run = _new_run(target or "", seed, scale or cluster.default_scale, settings or [], root, configs)
    print(f"run {run.path}")
    ranks, devices = _share_of_this_machine(run, cluster)
    threads = int(os.environ["OMP_NUM_THREADS"])
    with StopSignals() as signals:
        execution = run_attempt(
            run,
            {"devices": devices, "ranks": ranks},
            signals.requested,
            lambda attempt: other_ranks(run, attempt, ranks, threads, devices),
        )
    print(f"{execution.state}: {execution.reason}")
    if execution.state in ("failed", "stopped"):
        raise typer.Exit(EXIT_BAD_NEWS)


def _share_of_this_machine(run: RunDir, cluster: Cluster) -> tuple[int, list[str]]:
    """(ranks, GPUs): as many as the run had, else as a job on the cluster gets; a GPU for each rank or none."""
    from hpcstab.launch.clusters import ranks_per_run
    from hpcstab.launch.machine import gpu_devices
    from hpcstab.rundir import read_attempts

    ranks = next((attempt["ranks"] for attempt in reversed(read_attempts(run)) if "ranks" in attempt), None)
    here = gpu_devices() or []
    if ranks is None:
        ranks = ranks_per_run(cluster)
        ranks = min(ranks, len(here)) if here else ranks
    if here and ranks > len(here):
        raise ConfigError(f"{run.run_id} had {ranks} ranks, a GPU each; here are {len(here)} GPUs")
    return ranks, here[:ranks]


def _new_run(target: str, seed: int, scale: str, settings: list[str], root: Path, configs: Path | None) -> RunDir:
    from hpcstab.config import load_experiment, parse_overrides, resolve
    from hpcstab.identity import create_run

    model, variant = split_target(target)
    if variant is None:
        raise ConfigError(f"train wants MODEL@VARIANT, got '{target}'; e.g. {target}@before")
    experiment = load_experiment(model, configs)
    resolved = resolve(experiment, variant, scale, parse_overrides(settings))
    refuse_missing_data([resolved])
    return create_run(root, experiment, resolved, seed)


def _resumable(text: str, root: Path) -> RunDir:
    """The run that ``text`` names, unless it has ended or is at work."""
    from hpcstab.launch.queue import state_of
    from hpcstab.rundir import find_run

    run = find_run(text, root)
    state = state_of(run)
    if state.is_result or state.state in ("queued", "running"):
        raise ConfigError(f"{state.run_id} is {state.state}: there is nothing to resume")
    return run
