"""Runs that may be compared: one model, one scale, one declared way to compare; grouped by variant."""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Any

from hpcstab.config import Compare
from hpcstab.report.outcome import Outcome, outcome_of
from hpcstab.report.record import LoadedRun, overrides_text
from hpcstab.report.words import printable

_ORDER = {"before": 0, "after": 2, "cured": 4}
_LENGTH_KEYS = ("trainer.max_steps", "trainer.epochs")


@dataclass(frozen=True)
class Group:
    """All runs of one variant with the same overrides; a group never loses a run."""

    label: str
    runs: tuple[LoadedRun, ...]
    outcomes: tuple[Outcome, ...]

    @property
    def variant(self) -> str:
        return self.runs[0].variant

    @property
    def full_label(self) -> str:
        """As in runs.csv: with the overrides that all runs of the section share."""
        return self.runs[0].full_label

    @property
    def overrides(self) -> Mapping[str, Any]:
        return self.runs[0].overrides

    @property
    def is_rerun(self) -> bool:
        """Its runs go on from other runs: they are no independent ones, and enter no comparison."""
        return self.runs[0].parent is not None

    @property
    def seeds(self) -> list[int]:
        return sorted({run.seed for run in self.runs})

    @property
    def failed(self) -> list[Outcome]:
        return [outcome for outcome in self.outcomes if outcome.failed_step is not None]

    @property
    def finite(self) -> list[Outcome]:
        """Outcomes that reached the horizon without a failure."""
        return [outcome for outcome in self.outcomes if outcome.stayed_finite]

    @property
    def undecided(self) -> list[Outcome]:
        """Neither failed nor at the horizon: running, crashed, stopped, unreadable."""
        return [outcome for outcome in self.outcomes if outcome.failed_step is None and not outcome.stayed_finite]


@dataclass(frozen=True)
class Section:
    """One comparison: everything in it was measured alike.

    ``horizon`` is the smallest of the declared horizon and the planned steps of the runs, of the latter alone where a
    rerun begins behind the declared one; ``known`` are all runs that
    were loaded, by id: a parent can stand in another section. ``part`` counts the sections of a model and scale from 1.
    """

    model: str
    scale: str
    compare: Compare
    horizon: int
    groups: tuple[Group, ...]
    known: Mapping[str, LoadedRun] = field(default_factory=dict)
    part: int = 1

    @property
    def runs(self) -> list[LoadedRun]:
        return [run for group in self.groups for run in group.runs]

    @property
    def outcomes(self) -> list[Outcome]:
        return [outcome for group in self.groups for outcome in group.outcomes]

    @property
    def name(self) -> str:
        """For file names, one on a page: ``swae3d_quick``, ``swae3d_quick_2``."""
        return f"{self.model}_{self.scale}" + (f"_{self.part}" if self.part > 1 else "")

    @property
    def title(self) -> str:
        """For headings: model, scale, what all runs were set to beside it, length."""
        first = self.runs[0]
        shared = f" with {printable(overrides_text(first.overrides))}" if first.shares_overrides else ""
        return f"{self.model} at scale {self.scale}{shared}, {self.horizon:,} steps"

    @cached_property
    def primary(self) -> Mapping[str, Any]:
        """Name, unit, direction and meaning of the metric that decides."""
        for run in self.runs:
            for metric in run.metrics:
                if metric.get("name") == self.compare.primary:
                    return metric
        return {"name": self.compare.primary, "unit": "", "direction": "higher", "about": ""}

    @property
    def sign(self) -> float:
        """+1 where a higher primary metric is better, -1 where a lower one is."""
        return -1.0 if self.primary["direction"] == "lower" else 1.0

    @property
    def decimals(self) -> int:
        """Digits after the point that resolve the margin."""
        margin = self.compare.margin
        return max(1, math.ceil(-math.log10(margin)) + 1) if margin > 0 else 3

    def group(self, variant: str, overrides: Mapping[str, Any]) -> Group | None:
        """The group of a variant with these overrides that began at step 0, if it was run."""
        fresh = [group for group in self.groups if not group.is_rerun]
        return next((group for group in fresh if (group.variant, group.overrides) == (variant, overrides)), None)

    def parent_of(self, run: LoadedRun) -> LoadedRun | None:
        """The run that a rerun goes on from, where it was loaded."""
        return self.known.get(str(run.parent["run_id"])) if run.parent else None

    def by_data(self) -> list[tuple[str, list[LoadedRun]]]:
        """Runs by the data they were measured on, each with a note for its baselines; most runs first, unmarked."""
        found: dict[str, list[LoadedRun]] = {}
        for run in self.runs:
            if run.data_key:
                found.setdefault(run.data_key, []).append(run)
        by_size = sorted(found.values(), key=len, reverse=True)
        notes = [f" on the data of {', '.join(dict.fromkeys(run.label for run in runs))}" for runs in by_size]
        return list(zip(["", *notes[1:]], by_size, strict=False))

    @cached_property
    def declaration(self) -> str:
        """First 12 hex digits of the SHA-256 of what was declared before the runs: compare, failure, claims."""
        return declared_digest(newest(self.runs).identity)


def make_sections(runs: Sequence[LoadedRun]) -> list[Section]:
    """Sections in the order of model, scale and time; runs of different scales never share one."""
    by_key: dict[tuple[Any, ...], list[LoadedRun]] = {}
    for run in runs:
        by_key.setdefault(_section_key(run), []).append(run)
    known = {run.run_id: run for run in runs}
    sections: list[Section] = []
    for _, members in sorted(by_key.items(), key=lambda item: item[0]):
        section = _section(members, known)
        before = [each for each in sections if (each.model, each.scale) == (section.model, section.scale)]
        sections.append(replace(section, part=1 + len(before)))
    return sections


def declared_digest(identity: Mapping[str, Any]) -> str:
    """12 hex digits over the declared ``compare``, ``failure`` and ``claims`` of a run."""
    declared = {key: identity.get(key) for key in ("compare", "failure", "claims")}
    return hashlib.sha256(json.dumps(declared, sort_keys=True).encode()).hexdigest()[:12]


def newest(runs: Sequence[LoadedRun]) -> LoadedRun:
    """The run whose folder was made last."""
    return max(runs, key=lambda run: run.run.path.name)


def _section_key(run: LoadedRun) -> tuple[str, str, str, str]:
    length = {key: run.overrides.get(key) for key in _LENGTH_KEYS}
    declared = {key: run.identity.get(key) for key in ("compare", "failure")}
    return run.model, run.scale, json.dumps(declared, sort_keys=True), json.dumps(length, sort_keys=True)


def _section(runs: list[LoadedRun], known: Mapping[str, LoadedRun]) -> Section:
    compare = runs[0].compare
    planned = [run.planned_steps for run in runs if run.planned_steps]
    horizon = min([*_declared_horizon(runs, compare), *planned], default=compare.horizon_steps)
    if runs[0].overrides and all(run.overrides == runs[0].overrides for run in runs):
        runs = [replace(run, shares_overrides=True) for run in runs]
    by_label: dict[str, list[LoadedRun]] = {}
    for run in sorted(
        runs, key=lambda run: (_rank(run), run.parent is not None, run.label, run.seed, run.run.path.name)
    ):
        by_label.setdefault(run.label, []).append(run)
    groups = tuple(
        Group(label, tuple(members), tuple(outcome_of(run, horizon) for run in members))
        for label, members in by_label.items()
    )
    return Section(runs[0].model, runs[0].scale, compare, horizon, groups, known)


def _declared_horizon(runs: list[LoadedRun], compare: Compare) -> list[int]:
    """The declared one as a list, empty where a rerun begins behind it: of that run nothing would be left."""
    return [compare.horizon_steps] if all(run.entry_step < compare.horizon_steps for run in runs) else []


def _rank(run: LoadedRun) -> int:
    """before, what grew from it, after, what grew from it, cured, what grew from it, the rest."""
    for name, rank in _ORDER.items():
        if run.variant == name:
            return rank
        if run.variant.startswith((f"{name}+", f"{name}-")):
            return rank + 1
    return 6
