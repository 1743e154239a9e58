"""How one run ended, cut at the horizon of its comparison."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from hpcstab.interventions import declared_fault_steps
from hpcstab.report.record import LoadedRun, number

RISING_SHARE = 1 / 4
"""Still rising: the last evaluation is the best, by more than this share of the margin."""


@dataclass(frozen=True)
class Outcome:
    """One run up to the horizon.

    ``failed_step``: the first failure at or before the horizon; a declared fault that the gate kept out is none.
    ``seen_steps``: steps recorded, at most the horizon. ``final``: the primary metric of the last evaluation; NaN where
    the run failed by its numbers or that evaluation had invalid batches, None where the run has not reached the
    horizon or has no evaluation.
    """

    run: LoadedRun
    failed_step: int | None
    seen_steps: int
    reached: bool
    final: float | None
    best: float | None
    floor: float | None
    sign: float
    rising: bool | None

    @property
    def seed(self) -> int:
        return self.run.seed

    @property
    def stayed_finite(self) -> bool:
        return self.reached and self.failed_step is None

    @property
    def gain(self) -> float | None:
        """By how much the final metric is better than the best floor."""
        if self.final is None or self.floor is None:
            return None
        return self.sign * (self.final - self.floor)


def outcome_of(run: LoadedRun, horizon: int) -> Outcome:
    """The outcome of a run under the metric and margin that it declared."""
    primary = run.compare.primary
    metric = next((entry for entry in run.metrics if entry.get("name") == primary), {})
    sign = -1.0 if metric.get("direction") == "lower" else 1.0
    failed_step = _failed_step(run, horizon)
    seen = min(run.steps, horizon)
    reached = run.state == "completed" or seen >= horizon
    floors = [scores[primary] for _, scores in baselines(run, "floor").items() if primary in scores]
    return Outcome(
        run=run,
        failed_step=failed_step,
        seen_steps=seen,
        reached=reached,
        final=final_metric(run, primary, horizon) if reached or run.diverged else None,
        best=best_metric(run, primary, sign, horizon),
        floor=max(floors, key=lambda score: sign * score) if floors else None,
        sign=sign,
        rising=_still_rising(run, primary, sign, horizon) if reached and failed_step is None else None,
    )


def final_metric(run: LoadedRun, metric: str, horizon: int | None = None) -> float | None:
    """The last evaluation at or before ``horizon`` (None: of the run).

    NaN where the run diverged by then or its last evaluation had invalid batches: a score from before
    a death, or of the batches that happened to survive, is not the score of the run.
    """
    if run.diverged and (horizon is None or (_failed_step(run, horizon) is not None)):
        return math.nan
    evals = _until(run, metric, horizon)
    if not len(evals):
        return None
    last = evals.iloc[-1]
    return math.nan if last["num_failed_batches"] > 0 else float(last[metric])


def best_metric(run: LoadedRun, metric: str, sign: float, horizon: int | None = None) -> float | None:
    """The best valid evaluation at or before ``horizon``, whatever became of the run afterwards."""
    evals = _until(run, metric, horizon)
    values = [value for value in evals[metric][evals["num_failed_batches"] == 0] if math.isfinite(value)]
    return max(values, key=lambda value: sign * value) if values else None


def baselines(run: LoadedRun, role: str) -> dict[str, Mapping[str, float]]:
    """Scores by name of the baselines with a role, on the run's own validation data."""
    entries = run.task.get("baselines", {}).get("validation", [])
    return {
        str(entry["name"]): {
            name: value for name, score in entry["scores"].items() if (value := number(score)) is not None
        }
        for entry in entries
        if entry["role"] == role
    }


def _failed_step(run: LoadedRun, horizon: int) -> int | None:
    first = None if was_spared(run) else run.first_failure_step
    if first is None and (run.diverged or run.state == "halted"):
        first = max(run.steps - 1, 0)
    return first if first is not None and first <= horizon else None


def was_spared(run: LoadedRun) -> bool:
    """Whether a declared fault is all that the run met, and the gate kept it out of the state: it failed in nothing."""
    declared = declared_fault_steps(run.config)
    undeclared = run.count("refused_nonfinite") + run.count("not_reproduced")
    undeclared += sum(event["kind"] == "first_failure" and event["step"] not in declared for event in run.events)
    return run.first_failure_step in declared and run.answer("finite") == "yes" and not undeclared


def _still_rising(run: LoadedRun, metric: str, sign: float, horizon: int) -> bool | None:
    """Is the last evaluation the best, by more than a quarter margin above all of the first two thirds?"""
    evals = _until(run, metric, horizon)
    if len(evals) < 3:
        return None
    scores = sign * evals[metric].to_numpy(dtype=float)
    earlier = scores[evals["step"].to_numpy() <= evals["step"].iloc[-1] * 2 / 3]
    needed = run.compare.margin * RISING_SHARE
    return bool(scores[-1] >= scores.max() and scores[-1] - earlier.max() > needed)


def _until(run: LoadedRun, metric: str, horizon: int | None) -> pd.DataFrame:
    if metric not in run.evals.columns:
        return pd.DataFrame({"step": [], metric: [], "num_failed_batches": []})
    return run.evals if horizon is None else run.evals[run.evals["step"] <= horizon]


def was_kept_out(outcome: Outcome) -> bool:
    """Whether the run met a non-finite value, and its state stayed finite all the same: a gate refused it."""
    return was_nonfinite(outcome) and outcome.run.answer("finite") == "yes"


def was_nonfinite(outcome: Outcome) -> bool:
    """Whether the failure was a non-finite value, and not one that the model declares of finite values."""
    return outcome.failed_step is not None and outcome.run.first_nonfinite_step == outcome.failed_step


def was_declared(outcome: Outcome) -> bool:
    """Whether the failure came in a step whose batch carries a fault on purpose."""
    return outcome.failed_step in declared_fault_steps(outcome.run.config)
