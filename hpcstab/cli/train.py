"""``hpcstab train MODEL@VARIANT``: one run, here, in this process."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, Configs, Root, Scale, Settings
from hpcstab.cli.show import split_target
from hpcstab.errors import EXIT_BAD_NEWS


def train(
    target: Annotated[str, typer.Argument(metavar="MODEL@VARIANT", help="e.g. swae3d@cured")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of data, initialisation and order.")] = 0,
    scale: Scale = None,
    settings: Settings = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
) -> None:
    """Train one run here, in this process; a diverged run is a result (exit 0)."""
    from hpcstab.config import load_experiment, parse_overrides, resolve
    from hpcstab.errors import ConfigError
    from hpcstab.identity import create_run
    from hpcstab.launch.attempt import run_attempt
    from hpcstab.launch.signals import StopSignals

    model, variant = split_target(target)
    if variant is None:
        raise ConfigError(f"train wants MODEL@VARIANT, got '{target}'; e.g. {target}@before")
    experiment = load_experiment(model, configs)
    resolved = resolve(
        experiment, variant, scale or next(iter(experiment.file.scales)), parse_overrides(settings or [])
    )
    run = create_run(root, experiment, resolved, seed)
    print(f"run {run.path}")
    with StopSignals() as signals:
        execution = run_attempt(run, stop_requested=signals.requested)
    print(f"{execution.state}: {execution.reason}")
    if execution.state in ("failed", "stopped"):
        raise typer.Exit(EXIT_BAD_NEWS)
