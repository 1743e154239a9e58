"""The files that the trainer writes during a run."""

from __future__ import annotations

import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcstab.metrics import (
    PROBES_COLUMNS,
    TERMS_COLUMNS,
    CsvAppender,
    EventKind,
    EventLog,
    evals_header,
    metrics_header,
)
from hpcstab.rundir import RunDir, write_json
from hpcstab.task import Task

HEARTBEAT_S = 2.0
"""status.json is never older than this between two steps."""


class _Nowhere:
    """For ranks that write no files."""

    def append(self, row: Mapping[str, Any]) -> None:
        """Leave the row out."""

    def write(self, kind: EventKind, step: int, update: int, **data: Any) -> None:
        """Leave the event out."""

    def close(self) -> None:
        """Nothing is open."""


class Records:
    """metrics.csv, evals.csv, probes.csv, terms.csv, events.jsonl, task.json and status.json of one attempt.

    ``writes`` False: another rank writes them, and this one only knows its status. ``evaluation``: step and primary
    metric of the last evaluation, None where it was not finite.
    """

    def __init__(
        self, run: RunDir, task: Task, attempt: int, total_steps: int, primary: str, *, writes: bool = True
    ) -> None:
        self._run = run
        self._writes = writes
        self._primary = next(metric for metric in task.metrics if metric.name == primary)
        self.attempt = attempt
        self.evaluation: dict[str, Any] | None = None
        evals = evals_header(metric.name for metric in task.metrics)
        self.metrics = self._csv(run.metrics_csv, metrics_header(task.loss_term_names, task.diagnostics))
        self.evals = self._csv(run.evals_csv, evals)
        self.probes = self._csv(run.probes_csv, PROBES_COLUMNS)
        self.terms = self._csv(run.terms_csv, TERMS_COLUMNS)
        self.events = EventLog(run.events_jsonl, attempt) if writes else _Nowhere()
        self._status: dict[str, Any] = {
            "state": "running",
            "step": 0,
            "first_step": 0,  # of this attempt
            "total_steps": total_steps,
            "update": 0,
            "time": 0.0,
            "attempt": attempt,
            "last": None,
            "eval": None,
            "best": None,
            "error": None,
            "first_nonfinite_step": None,
            "first_failure_step": None,
            "judgement": None,
        }

    def write_task(self, task: Task) -> None:
        """task.json, once, before step 0.

        Ranks that do not write measure the baselines all the same: they would wait for it longer than their patience.
        """
        if self._run.task_json.exists():
            return
        facts = {
            "metrics": [vars(metric) for metric in task.metrics],
            "loss_terms": list(task.loss_term_names),
            "diagnostics": list(task.diagnostics),
            "baselines": {
                "validation": [
                    {"name": baseline.name, "role": baseline.role, "scores": dict(baseline.scores)}
                    for baseline in task.baselines()
                ]
            },
            "data": dict(task.data_facts()),
        }
        if self._writes:
            write_json(self._run.task_json, facts)

    def status(self, **changes: Any) -> None:
        """Change the status in memory; :meth:`heartbeat` brings it to disk."""
        self._status |= changes

    def __getitem__(self, key: str) -> Any:
        return self._status[key]

    def heartbeat(self, *, now: bool = False) -> None:
        """Write status.json where the last one is older than ``HEARTBEAT_S``, or at once."""
        if self._writes and (now or time.time() - self._status["time"] >= HEARTBEAT_S):
            self._status["time"] = time.time()
            write_json(self._run.status_json, spelled(self._status))

    def nonfinite(self, step: int, **data: Any) -> None:
        """Record the first non-finite value of the run: it is a failure as well."""
        self.first("first_nonfinite_step", step, "first_nonfinite", **data)
        self.first("first_failure_step", step, "first_failure", **data)

    def first(self, key: str, step: int, kind: EventKind, **data: Any) -> None:
        """Record the first step of something, once, with its event."""
        if self._status[key] is None:
            self._status[key] = step
            self.events.write(kind, step, self._status["update"], **data)

    def better(self, step: int, metrics: Mapping[str, float]) -> None:
        """Remember the evaluation, and keep it where its primary metric is the best so far."""
        value, best = metrics[self._primary.name], self._status["best"]
        sign = 1.0 if self._primary.direction == "higher" else -1.0
        named = {"metric": self._primary.name, "direction": self._primary.direction, "value": value, "step": step}
        self.evaluation = named if math.isfinite(value) else None
        if math.isfinite(value) and (best is None or sign * value > sign * best["value"]):
            self._status["best"] = {"metric": self._primary.name, "value": value, "step": step}

    def _csv(self, path: Path, header: tuple[str, ...]) -> CsvAppender | _Nowhere:
        return CsvAppender(path, header) if self._writes else _Nowhere()

    def close(self) -> None:
        for file in (self.metrics, self.evals, self.probes, self.terms, self.events):
            file.close()


def spelled(value: Any) -> Any:
    """``value`` for JSON: non-finite numbers as the words nan, inf and -inf."""
    if isinstance(value, float) and not math.isfinite(value):
        return str(value)
    if isinstance(value, dict):
        return {key: spelled(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [spelled(entry) for entry in value]
    return value
