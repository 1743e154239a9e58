"""Where a rerun leaves its parent, drawn into the curves: the parent's curve, the step, the way to the rerun's own."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.lines import Line2D
from matplotlib.patheffects import withStroke

from hpcstab.report.outcome import Outcome
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Section
from hpcstab.report.style import BRANCH, FAINT, Look, looks


def reruns_of(section: Section) -> list[Outcome]:
    """The reruns that go on from a step of another run; one that begins with weights branches off nowhere."""
    return [outcome for outcome in section.outcomes if outcome.run.entry_step > 0]


def draw_branches(
    axes: Axes, section: Section, column: str, end: int, *, window: int = 1, of_evaluations: bool = False
) -> None:
    """A circle on the parent's curve and a line to the rerun's; a parent from elsewhere gets its curve as well.

    Args:
        column: of metrics.csv, or of evals.csv where ``of_evaluations``.
        end: the last step that is drawn.
        window: steps of the running median that stands for a curve; 1 for none.
    """
    elsewhere: dict[str, LoadedRun] = {}
    steps: dict[int, Look] = {}
    for outcome in reruns_of(section):
        run, parent = outcome.run, section.parent_of(outcome.run)
        if run.entry_step > end:
            continue
        look = looks(section.groups)[run.label]
        steps.setdefault(run.entry_step, look)
        if parent is None:
            continue
        if parent not in section.runs:
            elsewhere[parent.run_id] = parent
        left, own = (_smooth(_values(one, column, of_evaluations), window) for one in (parent, run))
        _draw_junction(axes, left, own, run.entry_step, look)
    for parent in elsewhere.values():
        values = _smooth(_values(parent, column, of_evaluations), window)
        values = values[values.index <= end]
        axes.plot(values.index, values, color=FAINT, linewidth=1.0, alpha=0.8, zorder=2)
    for step, look in steps.items():
        _name_step(axes, step, look, end)


def branch_handles(section: Section) -> list[Line2D]:
    """What the legend says about branches; nothing where there is none."""
    if not reruns_of(section):
        return []
    handles = [Line2D([], [], color=FAINT, linestyle="none", label="rerun branches off", **BRANCH)]
    parents = [section.parent_of(outcome.run) for outcome in reruns_of(section)]
    if any(parent is not None and parent not in section.runs for parent in parents):
        handles.append(Line2D([], [], color=FAINT, linewidth=1.0, label="its parent"))
    return handles


def _draw_junction(axes: Axes, parent: pd.Series, own: pd.Series, step: int, look: Look) -> None:
    """From the last finite value that both share to the first of the rerun alone."""
    before = parent[parent.index <= step]
    before = before[np.isfinite(before)]
    own = own[np.isfinite(own)]
    if not len(before):
        return
    at, height = before.index[-1], before.iloc[-1]
    if len(own):
        way: dict[str, Any] = {"color": look.colour, "linewidth": 1.0, "linestyle": (0, (1, 1)), "zorder": 3}
        axes.plot([at, own.index[0]], [height, own.iloc[0]], **way)
    axes.plot([at], [height], color=look.colour, linestyle="none", zorder=6, **BRANCH)


def _name_step(axes: Axes, step: int, look: Look, end: int) -> None:
    axes.axvline(step, color=look.colour, linewidth=0.9, linestyle=(0, (2, 2)), alpha=0.8, zorder=1)
    behind = step < 0.75 * end
    axes.annotate(
        f"rerun from {step:,}", (step, 1.0), xycoords=axes.get_xaxis_transform(), xytext=(4 if behind else -4, -3),
        textcoords="offset points", ha="left" if behind else "right", va="top", fontsize=8.5, color=look.colour,
        zorder=6, path_effects=[withStroke(linewidth=2.5, foreground="white")],
    )  # fmt: skip


def _values(run: LoadedRun, column: str, of_evaluations: bool) -> pd.Series:
    """A column by step."""
    rows = run.evals if of_evaluations else run.history
    if column not in rows:
        return pd.Series(dtype=float)
    return pd.Series(rows[column].to_numpy(dtype=float), index=rows["step"].to_numpy(dtype=int))


def _smooth(values: pd.Series, window: int) -> pd.Series:
    return (
        values
        if window == 1
        else values.where(np.isfinite(values)).rolling(window, min_periods=1, center=True).median()
    )
