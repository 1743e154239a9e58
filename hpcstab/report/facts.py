"""One row a run: the columns of runs.csv, which claims are tested on.

A cell that was not measured is empty; a value that was measured and is not finite is nan, inf or -inf.
"""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from hpcstab.report.outcome import Outcome, baselines, best_metric, final_metric
from hpcstab.report.record import LoadedRun, number
from hpcstab.report.sections import Section, declared_digest

Row = dict[str, Any]
_LOSS_COLUMNS = (
    "loss_first",
    "loss_last",
    "loss_change",
    "grad_norm_first",
    "max_grad_norm",
    "max_finite_grad_norm",
)

_COUNTED = (
    *("refused_nonfinite", "refused_declared", "not_reproduced", "spikes", "rescaled", "backoffs", "rollbacks"),
    *("repaired", "failed_eval_batches", "empty_evals", "nonfinite_terms", "ramped_again"),
)


def section_rows(section: Section) -> list[Row]:
    """The rows of a section, in the order of its groups."""
    return [run_row(outcome, section) for outcome in section.outcomes]


def run_row(outcome: Outcome, section: Section) -> Row:
    """Everything that is said about one run in numbers."""
    run = outcome.run
    return {
        **_identity(run, section),
        **_survival(outcome),
        **_losses(run),
        **_metrics(run, section),
        **_baselines(run, section.compare.primary),
        "gain_over_floor": outcome.gain,
        "still_rising": None if outcome.rising is None else int(outcome.rising),
        **_counts(run),
        **{question: run.answer(question) for question in ("finite", "learned", "unmasked")},
        "stable": int(bool(run.judgement["stable"])),
        **_cost(run),
        **{f"data_{name}": value for name, value in run.task.get("data", {}).items()},
    }


def rows_as_csv(rows: Sequence[Row]) -> str:
    """runs.csv as text; the columns are the union over the rows, in order of appearance."""
    columns = list(dict.fromkeys(column for row in rows for column in row))
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(columns)
    writer.writerows([["" if row.get(column) is None else row[column] for column in columns] for row in rows])
    return text.getvalue()


def _identity(run: LoadedRun, section: Section) -> Row:
    return {
        "run_id": run.run_id,
        "campaign": run.identity.get("campaign"),
        "model": run.model,
        "label": run.full_label,
        "variant": run.variant,
        "scale": run.scale,
        "seed": run.seed,
        "state": run.state,
        "horizon_steps": section.horizon,
        "parent": run.parent["run_id"] if run.parent else None,
        "from_step": run.entry_step if run.parent else None,
        "planned_steps": run.planned_steps,
        "steps": run.steps,
        "steps_without_tensorboard": run.steps if _had_event(run, "tensorboard_absent") else None,
        "samples_seen": samples_seen(run),
        "declared": declared_digest(run.identity),
        "signature": run.identity.get("signature"),
        "code_digest": run.identity.get("code_digest"),
    }


def _had_event(run: LoadedRun, kind: str) -> bool:
    return any(event["kind"] == kind for event in run.events)


def samples_seen(run: LoadedRun, horizon: int | None = None) -> int | None:
    """Training items that went into an update, with the config's batch size; None where that is unknown."""
    batch_size = run.config.get("data", {}).get("batch_size")
    if batch_size is None:
        return None
    history = run.history if horizon is None else run.history[run.history["step"] < horizon]
    return int((history["outcome"] != "held").sum()) * int(batch_size)


def _survival(outcome: Outcome) -> Row:
    run = outcome.run
    return {
        "first_nonfinite_step": run.first_nonfinite_step,
        "first_nonfinite_epoch": _epoch_of(run, run.first_nonfinite_step),
        "first_failure_step": run.first_failure_step,
        "nonfinite": int(run.first_nonfinite_step is not None),
        "diverged": int(run.diverged),
        "failed_by_horizon": int(outcome.failed_step is not None),
        "reached_horizon": int(outcome.reached),
        "nonfinite_loss_steps": int((run.history["loss_finite"] == 0).sum()) if run.steps else None,
        "nonfinite_grad_steps": int((run.history["grad_finite"] == 0).sum()) if run.steps else None,
    }


def _losses(run: LoadedRun) -> Row:
    """A loss or norm that was once non-finite stays so in its median and maximum: it is not skipped."""
    if not run.steps:
        return dict.fromkeys(_LOSS_COLUMNS)
    losses = run.history["loss"].to_numpy(dtype=float)
    norms = run.history["grad_norm"].to_numpy(dtype=float)
    tenth = max(1, len(losses) // 10)
    with np.errstate(invalid="ignore"):
        change = float(np.median(losses[-tenth:]) - np.median(losses[:tenth]))
    return {
        "loss_first": float(losses[0]),
        "loss_last": float(losses[-1]),
        "loss_change": math.nan if not np.isfinite(losses).all() else change,
        "grad_norm_first": float(norms[0]),
        "max_grad_norm": float(np.max(norms)),
        "max_finite_grad_norm": float(np.max(norms[np.isfinite(norms)], initial=-math.inf)),
        **_shares(run),
        **_diagnostics(run),
        **_ends(run),
    }


def _epoch_of(run: LoadedRun, step: int | None) -> int | None:
    """The epoch of a step that was recorded."""
    if step is None or not run.steps:
        return None
    epochs = run.history.loc[run.history["step"] == step, "epoch"]
    return int(epochs.iloc[0]) if len(epochs) else None


def _ends(run: LoadedRun) -> Row:
    """First and last value of every loss term and diagnostic."""
    columns = [name for name in map(str, run.history) if name.startswith(("loss_", "diag_")) and name != "loss_finite"]
    ends = {"first": 0, "last": -1}
    return {
        f"{column}_{which}": float(run.history[column].iloc[row]) for column in columns for which, row in ends.items()
    }


def _shares(run: LoadedRun) -> Row:
    """Median part of each weighted term in the loss, over the finite steps; only where weights are constant."""
    losses = run.config.get("losses", {})
    if losses.get("phases") or not losses.get("weights"):
        return {}
    finite = run.history[run.history["loss_finite"] == 1]
    shares = {}
    for term, weight in losses["weights"].items():
        if f"loss_{term}" in finite and len(finite):
            shares[f"share_{term}"] = float((weight * finite[f"loss_{term}"] / finite["loss"]).median())
    return shares


def _diagnostics(run: LoadedRun) -> Row:
    """The largest finite value of each of the task's diagnostics."""
    names = [name for name in map(str, run.history.columns) if name.startswith("diag_")]
    columns = {name: run.history[name].to_numpy(dtype=float) for name in names}
    return {
        f"max_{name}": float(np.max(values[np.isfinite(values)], initial=-math.inf)) for name, values in columns.items()
    }


def _metrics(run: LoadedRun, section: Section) -> Row:
    """``psnr`` and ``best_psnr`` up to the horizon, ``end_psnr`` at the end of the run."""
    ended = not run.unfinished
    row: Row = {"evaluations": len(run.evals)}
    for metric in run.metrics:
        name, sign = metric["name"], -1.0 if metric["direction"] == "lower" else 1.0
        reached = ended or run.steps >= section.horizon
        row[name] = final_metric(run, name, section.horizon) if reached else None
        row[f"best_{name}"] = best_metric(run, name, sign, section.horizon)
        row[f"end_{name}"] = final_metric(run, name) if ended else None
    return row


def _baselines(run: LoadedRun, primary: str) -> Row:
    return {
        f"{role}_{name}": scores.get(primary)
        for role in ("floor", "reference")
        for name, scores in baselines(run, role).items()
    }


def _counts(run: LoadedRun) -> Row:
    if not run.steps:
        return dict.fromkeys(("skipped", "masked", "limited", *_COUNTED))
    return {
        "skipped": int((run.history["outcome"] == "skipped").sum()),
        "masked": max(_total(run.history, "num_masked") or 0, run.count("masked")),  # resets have no row
        "limited": _total(run.history, "num_limited"),
        **{what: run.count(what) for what in _COUNTED},
    }


def _total(history: pd.DataFrame, column: str) -> int | None:
    return int(history[column].sum()) if column in history else None


def _cost(run: LoadedRun) -> Row:
    """Hours in the training loop over all attempts, evaluations included."""
    row: Row = dict.fromkeys(("hours", "step_time_ms", "peak_mem_gib"))
    if run.steps and {"time_s", "step_time_s", "peak_mem_gib"} <= set(run.rows.columns):
        row["hours"] = float(run.rows.groupby("attempt")["time_s"].max().sum()) / 3600
        row["step_time_ms"] = float(run.history["step_time_s"].median()) * 1000
        row["peak_mem_gib"] = float(run.rows["peak_mem_gib"].max())
    machine = machine_of(run)
    return {
        **row,
        "device": machine.get("device_name"),
        "cuda": int(str(machine.get("device", "")).startswith("cuda")),
        "threads": machine.get("num_threads"),
        "node": run.attempts[-1].get("node") if run.attempts else None,
        "attempts": len(run.attempts),
        "error": run.status.get("error") or "; ".join(run.problems) or None,
    }


def machine_of(run: LoadedRun) -> Mapping[str, Any]:
    """``device``, ``device_name`` and ``num_threads`` of the last attempt that began to train."""
    starts = [event.get("data", {}) for event in run.events if event["kind"] == "train_start"]
    return starts[-1] if starts else {}


def figure(row: Mapping[str, Any], column: str) -> float | None:
    """A cell as a number; None where it was not measured or is a text."""
    value = row.get(column)
    return number(value) if isinstance(value, (int, float)) else None
