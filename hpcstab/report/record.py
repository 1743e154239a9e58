"""What one run wrote, as an object."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd

from hpcstab.config import Claim, Compare
from hpcstab.report.words import printable
from hpcstab.rundir import RunDir

DATA_UPKEEP = ("batch_size", "num_workers", "faults")
"""Keys of the config's ``data`` that change neither the held-out samples nor the split."""


@dataclass(frozen=True)
class BrokenFolder:
    """A folder of which not even the identity can be read: it belongs to no variant."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LoadedRun:
    """What one run wrote. ``problems`` are the files that could not be read; their values are missing.

    ``history`` has one row a step (the last in file order), ``rows`` every row of every attempt,
    ``evals`` the validation rows with raw weights. ``shares_overrides``: all runs beside it have the same, so that the
    heading names them and not each label.
    """

    run: RunDir
    identity: Mapping[str, Any]
    compare: Compare
    claims: tuple[Claim, ...]
    config: Mapping[str, Any]
    task: Mapping[str, Any]
    status: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    rows: pd.DataFrame
    history: pd.DataFrame
    evals: pd.DataFrame
    judgement: Mapping[str, Any]
    state: str
    problems: tuple[str, ...]
    shares_overrides: bool = False

    @property
    def run_id(self) -> str:
        return printable(self.identity["run_id"])

    @property
    def model(self) -> str:
        return printable(self.identity["model"])

    @property
    def full_label(self) -> str:
        """The variant with its ``--set`` overrides, e.g. ``after{optimizer.lr=0.001}``."""
        return printable(self.identity["label"])

    @property
    def label(self) -> str:
        """The same within its section: without the overrides that all runs there share."""
        label = str(self.identity["label"])
        return printable(
            label.removesuffix(f"{{{overrides_text(self.overrides)}}}") if self.shares_overrides else label
        )

    @property
    def variant(self) -> str:
        return printable(self.identity["variant"])

    @property
    def scale(self) -> str:
        return printable(self.identity["scale"])

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @property
    def overrides(self) -> Mapping[str, Any]:
        return dict(self.identity["overrides"])

    @property
    def parent(self) -> Mapping[str, Any] | None:
        """For a rerun: of which run, from which step, with what; None for a run that began by itself."""
        parent: Mapping[str, Any] | None = self.identity.get("parent")
        return parent

    @property
    def entry_step(self) -> int:
        """The first step that is its own: before it, a rerun could not fail."""
        return int(self.parent["step"]) if self.parent else 0

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """Name, unit, direction and meaning of the task's metrics."""
        return list(self.task.get("metrics", []))

    @property
    def planned_steps(self) -> int | None:
        """Length of the training: the config's ``max_steps``, else what the trainer computed from epochs."""
        configured = self.config.get("trainer", {}).get("max_steps")
        return configured or self.status.get("total_steps")

    @property
    def data_key(self) -> str:
        """Equal for runs on the same data, given the same seed: their baselines are the same. Empty where unknown."""
        return self._data_without(DATA_UPKEEP)

    @property
    def held_out_key(self) -> str:
        """Equal for runs whose figures are measured on the same data, whatever they were trained on."""
        return self._data_without((*DATA_UPKEEP, *self.compare.training_only))

    def _data_without(self, left_out: Sequence[str]) -> str:
        data = self.config.get("data")
        if not data:
            return ""
        return json.dumps({key: data[key] for key in sorted(data) if key not in left_out}, default=str)

    @property
    def steps(self) -> int:
        """Steps recorded, the last one included."""
        return int(self.history["step"].iloc[-1]) + 1 if len(self.history) else 0

    @property
    def unfinished(self) -> bool:
        """True where the run has not ended by itself: its last values are not its final ones."""
        return self.state not in ("completed", "diverged", "halted")

    @property
    def first_nonfinite_step(self) -> int | None:
        """The earliest that status, rows or events tell: a killed trainer may not have written its status."""
        finite = (self.history["loss_finite"] == 1) & (self.history["grad_finite"] == 1)
        steps = [int(step) for step in self.history["step"][~finite].iloc[:1]]
        kinds = ("first_nonfinite", "state_nonfinite", "buffers_nonfinite")
        steps += [int(event["step"]) for event in self.events if event["kind"] in kinds]
        return _earliest([*steps, self.status.get("first_nonfinite_step")])

    @property
    def first_failure_step(self) -> int | None:
        """The earlier of the first non-finite step and the first row that met a failure condition."""
        steps = [int(event["step"]) for event in self.events if event["kind"] == "first_failure"]
        return _earliest([*steps, self.first_nonfinite_step, self.status.get("first_failure_step")])

    @property
    def diverged(self) -> bool:
        """The run ended because of its numbers, or its last recorded step was non-finite when it stopped."""
        if self.state == "diverged" or not len(self.history):
            return self.state == "diverged"
        last = self.history.iloc[-1]
        return bool(last["loss_finite"] == 0 and last["outcome"] == "applied")

    def count(self, what: str) -> int:
        """How often something acted, by the names of the judgement's counts; 0 where it was not counted."""
        return int(self.judgement.get("counts", {}).get(what, 0))

    def answer(self, question: str) -> str:
        """``yes``, ``no`` or ``unknown`` to ``finite``, ``learned`` or ``unmasked``."""
        return str(self.judgement[question]["answer"])


def number(value: Any) -> float | None:
    """A figure of a JSON file; the words nan, inf and -inf are non-finite numbers, null is none."""
    return None if value is None else float(value)


def _earliest(steps: list[Any]) -> int | None:
    known = [int(step) for step in steps if step is not None and not math.isnan(step)]
    return min(known, default=None)


def overrides_text(overrides: Mapping[str, Any]) -> str:
    """As labels and headings name them: ``data.source=real,optimizer.lr=0.001``."""
    return ",".join(f"{key}={value}" for key, value in sorted(overrides.items()))
