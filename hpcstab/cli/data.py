"""``hpcstab data check``: one pass over the data before anything is queued."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcstab.cli.options import AsJson, Configs, Scale, Settings
from hpcstab.cli.show import split_target
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS

app = typer.Typer(help="Look at the data of a model.")


@app.callback()
def _data() -> None:
    """A group of one verb for now: without this, typer would drop the word `check`."""


@app.command("check")
def check(
    target: Annotated[str, typer.Argument(metavar="MODEL[@VARIANT]", help="e.g. swae3d@before+repeated")],
    seed: Annotated[int, typer.Option("--seed", min=0, help="Seed of the run whose data are checked.")] = 0,
    scale: Scale = None,
    settings: Settings = None,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Non-finite, constant, out of range, wrong shape, duplicates across the split; exit 1 if it finds something."""
    from hpcstab.config import load_experiment, parse_overrides, resolve
    from hpcstab.execute import load_task

    model, variant = split_target(target)
    experiment = load_experiment(model, configs)
    scale = scale or next(iter(experiment.file.scales))
    run = resolve(experiment, variant or "before", scale, parse_overrides(settings or []))
    task = load_task(experiment.file.model, run.config, seed, str(experiment.path))
    findings, facts = task.check_data(), task.data_facts()
    if as_json:
        print_json({"facts": dict(facts), "findings": [vars(finding) for finding in findings]})
    else:
        print(f"{model}@{run.label} at scale {scale}, seed {seed}")
        print_table(("fact", "value"), facts.items())
        if findings:
            print_table(
                ("problem", "split", "count", "what"), [(f.kind, f.split, f.count, f.message) for f in findings]
            )
        else:
            print("nothing found: finite, in range, right shape, no sample in two splits")
    if findings:
        raise typer.Exit(EXIT_BAD_NEWS)
