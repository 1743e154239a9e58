"""models x variants x seeds -> an ordered list of runs; pure."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any

from pydantic import Field, Strict

from hpcstab.config import (
    Experiment,
    ResolvedRun,
    Section,
    find_yaml,
    load_experiment,
    parse_overrides,
    read_yaml_mapping,
    resolve,
    validate_section,
)
from hpcstab.errors import ConfigError
from hpcstab.rundir import RunDir

MAX_RUNS = 10_000
_SEEDS = re.compile(r"(\d{1,9})(?:-(\d{1,9}))?")
_Names = Annotated[tuple[str, ...], Strict(False)]


@dataclass(frozen=True)
class Branch:
    """Where a run begins that does not begin at step 0 of its own.

    Attributes:
        experiment: what its parent declared, read from the parent's folder.
        parent: of which run, from where, what was repaired; for run.json.
        write_start: writes the checkpoint that it begins with into its new folder.
    """

    experiment: Experiment
    parent: Mapping[str, Any]
    write_start: Callable[[RunDir], None]


@dataclass(frozen=True)
class PlannedRun:
    """One run of a campaign: what it trains, with which seed, and for a rerun where it begins."""

    resolved: ResolvedRun
    seed: int
    branch: Branch | None = None


class CampaignFile(Section):
    """The top level of ``jobs/campaigns/<name>.yaml``; ``scale`` and ``gpus`` (of each run) null take the cluster's."""

    about: str
    models: _Names = Field(min_length=1)
    variants: _Names = Field(min_length=1)
    seeds: str
    scale: str | None
    gpus: int | None = Field(default=None, ge=0)
    set: dict[str, Any]


def plan(
    models: list[str],
    variants: list[str],
    seeds: list[int],
    scale: str,
    overrides: tuple[tuple[str, Any], ...] = (),
    configs: Path | None = None,
) -> list[PlannedRun]:
    """All runs, models first, then seeds, then variants: pairs of one seed stand together.

    Raises:
        ConfigError: an unknown name, a variant given twice, or more than ``MAX_RUNS`` runs.
    """
    if len(models) * len(variants) * len(seeds) > MAX_RUNS:
        raise ConfigError(f"{len(models) * len(variants) * len(seeds)} runs asked for; at most {MAX_RUNS} are allowed")
    planned = []
    for model in models:
        experiment = load_experiment(model, configs)
        resolved = [resolve(experiment, variant, scale, overrides) for variant in variants]
        names = [run.label for run in resolved]
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice:
            raise ConfigError(f"{model}: variant '{twice}' is asked for twice")
        planned += [PlannedRun(run, seed) for seed in seeds for run in resolved]
    return planned


def load_campaign(name: str, configs: Path | None = None) -> CampaignFile:
    """``jobs/campaigns/<name>.yaml``."""
    path = find_yaml("jobs/campaigns", name, "campaign", configs)
    return validate_section(CampaignFile, read_yaml_mapping(path), str(path))


def overrides_of(campaign: CampaignFile) -> tuple[tuple[str, Any], ...]:
    """The overrides that a campaign file sets for all its runs."""
    return tuple(sorted(campaign.set.items()))


def parse_seeds(text: str) -> list[int]:
    """``0-2,5`` as ``[0, 1, 2, 5]``.

    Raises:
        ConfigError: not of that form (a negative seed, an empty range), or a seed twice.
    """
    seeds: list[int] = []
    for part in text.split(","):
        match = _SEEDS.fullmatch(part.strip(" "))
        if not match:
            raise ConfigError(f"seeds {text!r}: '{part}' is neither a number >= 0 nor a range such as 0-2")
        first, last = int(match[1]), int(match[2] or match[1])
        if last < first:
            raise ConfigError(f"seeds {text!r}: the range '{part}' is empty")
        if last - first > MAX_RUNS:
            raise ConfigError(f"seeds {text!r}: at most {MAX_RUNS} runs are allowed")
        seeds += range(first, last + 1)
    if len(set(seeds)) < len(seeds):
        raise ConfigError(f"seeds {text!r}: a seed stands there twice")
    return seeds


def parse_names(text: str, what: str) -> list[str]:
    """``before,after`` as a list; ``what`` is the word for the names in the error."""
    names = [name.strip() for name in text.split(",")]
    if not all(names):
        raise ConfigError(f"{what} {text!r}: a name between the commas is empty")
    return names


__all__ = [
    "MAX_RUNS",
    "Branch",
    "CampaignFile",
    "PlannedRun",
    "load_campaign",
    "overrides_of",
    "parse_names",
    "parse_overrides",
    "parse_seeds",
    "plan",
]
