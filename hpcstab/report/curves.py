"""Curves of all seeds together: one thin line a run, a cross with its step where a run went non-finite."""

from __future__ import annotations

import math
from collections.abc import Mapping
from statistics import median
from typing import Any

import numpy as np
import pandas as pd
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.patches import Rectangle
from matplotlib.patheffects import withStroke
from numpy.typing import NDArray

from hpcstab.report.branch_points import branch_handles, draw_branches
from hpcstab.report.outcome import Outcome, baselines, was_kept_out, was_nonfinite
from hpcstab.report.sections import Section
from hpcstab.report.style import FAINT, Look, figure_text, looks

Values = NDArray[np.float64]
MAX_BUCKETS = 1200
_FEW_STEPS = 150
_LEGEND_CHARACTERS = 150
_ROW_INCHES = 0.18
_ROWS_INCLUDED = 3
"""A legend of more rows makes the picture higher, and not its axes lower."""
_CHARACTER_INCHES = 0.07
"""Of a step's label, bold at 8.5 points."""
_TEXT_SHARE = 0.07
_ZOOM_BELOW = 0.3
"""A second panel shows the first steps where the failures lie in this part of the run."""
_WIDE = 1e3
_CUT_SHARE = 0.005
"""This share of the values at most is cut, where they are so many times as large as all others: they would press those
into one line."""


def draw_steps(section: Section, figure: Figure, column: str, label: str) -> None:
    """A column of metrics.csv by step on a log axis; with a panel of the first steps where runs died early."""
    zoom = _zoom_end(section)
    panels = [figure.subplots()] if zoom is None else list(figure.subplots(1, 2, width_ratios=[2, 3], sharey=True))
    ends = [section.horizon] if zoom is None else [zoom, section.horizon]
    for axes, end in zip(panels, ends, strict=True):
        for outcome in section.outcomes:
            _draw_run(axes, outcome, column, end, looks(section.groups)[outcome.run.label])
        scale_y(axes, [at for outcome in section.outcomes if (at := _last_finite_before(outcome, column)) is not None])
        draw_branches(axes, section, column, end, window=median_window(end))
        axes.set_xlim(-0.015 * end, end * 1.02)
        axes.set_xlabel("step" if end == section.horizon else f"step, the first {end:,}")
    panels[0].set_ylabel(label)
    _name_crosses(panels[0], section, column, ends[0], figure.get_figwidth() * (1.0 if zoom is None else 0.4))
    _legend(figure, section)


def draw_metric(section: Section, figure: Figure, label: str) -> None:
    """The primary metric by evaluation, its baselines as horizontal lines, and a rail for failures."""
    axes = figure.subplots()
    name = section.compare.primary
    for outcome in section.outcomes:
        look = looks(section.groups)[outcome.run.label]
        if name in outcome.run.evals:
            evals = outcome.run.evals[outcome.run.evals["step"] <= section.horizon]
            order = 3 if outcome.failed_step is None else 4
            axes.plot(evals["step"], _finite(evals[name]), **_line(look), marker="o", markersize=3.2, zorder=order)
    draw_branches(axes, section, name, section.horizon, of_evaluations=True)
    _draw_baselines(axes, section)
    low, high = axes.get_ylim()
    axes.set_ylim(low - 0.14 * (high - low), high + 0.06 * (high - low))
    axes.set_xlim(-0.015 * section.horizon, section.horizon * 1.02)
    axes.set_xlabel("step")
    axes.set_ylabel(figure_text(label))
    _draw_rail(axes, section, figure.get_figwidth())
    _legend(figure, section)


def _draw_rail(axes: Axes, section: Section, inches: float) -> None:
    """Below all curves: a cross a step at which runs failed, whatever they had scored before."""
    dead = [outcome for outcome in section.outcomes if outcome.failed_step is not None]
    if not dead:
        return
    axes.add_patch(Rectangle((0, 0), 1, 0.085, transform=axes.transAxes, color="#e9e9e9", zorder=0))
    axes.text(0.995, 0.042, "failed", transform=axes.transAxes, color=FAINT, ha="right", va="center")
    for outcome in dead:
        _cross_on_rail(axes, outcome.failed_step or 0, looks(section.groups)[outcome.run.label], 0.042)
    for step, at_step in _dead_by_step(section, section.horizon, inches):
        place: dict[str, Any] = {"xycoords": axes.get_xaxis_transform(), "textcoords": "offset points"}
        text = _step_text(_colour(at_step[0], section))
        axes.annotate(_step_and_count(step, at_step), (step, 0.042), xytext=(-4, 7), va="bottom", **place, **text)


def thin(steps: Values, values: Values, buckets: int = MAX_BUCKETS) -> tuple[Values, Values]:
    """At most two points a bucket, its minimum and maximum, so that no spike is lost; gaps stay gaps."""
    if len(steps) <= 2 * buckets:
        return steps, values
    kept = []
    for part in np.array_split(np.arange(len(steps)), buckets):
        finite = part[np.isfinite(values[part])]
        if len(finite):
            kept += sorted({finite[np.argmin(values[finite])], finite[np.argmax(values[finite])]})
        if len(finite) < len(part):
            kept.append(part[~np.isfinite(values[part])][0])
    chosen = np.array(sorted(set(kept)))
    return steps[chosen], values[chosen]


def _draw_run(axes: Axes, outcome: Outcome, column: str, end: int, look: Look) -> None:
    """Every step; where there are many, faintly, under the running median."""
    history = outcome.run.history
    shown = history[history["step"] < end]
    all_steps, all_values = shown["step"].to_numpy(dtype=float), _finite(shown[column])
    steps, values = thin(all_steps, all_values)
    window = median_window(end)
    order = 3 if outcome.failed_step is None else 4
    if window > 1:
        axes.plot(steps, values, **(_line(look) | {"alpha": 0.22, "linewidth": 0.7, "linestyle": "solid"}))
        smooth = pd.Series(all_values).rolling(window, min_periods=1, center=True).median().to_numpy()
        steps, values = thin(all_steps, np.where(np.isfinite(all_values), smooth, np.nan))
    axes.plot(steps, values, **_line(look), zorder=order)
    if outcome.failed_step is not None and outcome.failed_step <= end:
        at = _last_finite_before(outcome, column)
        if at is None:
            _cross_on_rail(axes, outcome.failed_step, look, 0.96)
        else:
            axes.plot([outcome.failed_step], [at], **_cross(look))


def median_window(num_steps: int) -> int:
    """Steps of the running median: 1 (none) where every step can be seen by itself."""
    return 1 if num_steps <= _FEW_STEPS else 2 * (num_steps // 100) + 1


def _name_crosses(axes: Axes, section: Section, column: str, end: int, inches: float) -> None:
    """The step beside each cross that has room for it; the lanes above name them all."""
    for step, dead in _dead_by_step(section, end, inches):
        heights = [at for outcome in dead if (at := _last_finite_before(outcome, column)) is not None]
        place: dict[str, Any] = {"textcoords": "offset points", **_step_text(_colour(dead[0], section))}
        if heights:
            axes.annotate(_step_and_count(step, dead), (step, max(heights)), xytext=(5, 5), **place)
        else:
            place["xycoords"] = axes.get_xaxis_transform()
            axes.annotate(_step_and_count(step, dead), (step, 0.96), xytext=(6, -3), **place)


def _dead_by_step(section: Section, end: int, inches: float) -> list[tuple[int, list[Outcome]]]:
    """Steps up to ``end`` at which runs failed and whose label has room, with these runs."""
    dead: dict[int, list[Outcome]] = {}
    for outcome in section.outcomes:
        if outcome.failed_step is not None:
            dead.setdefault(outcome.failed_step, []).append(outcome)
    labels = {step: _step_and_count(step, outcomes) for step, outcomes in dead.items()}
    return [(step, dead[step]) for step in steps_with_room(labels, end, inches)]


def steps_with_room(labels: Mapping[int, str], end: int, inches: float) -> list[int]:
    """Steps up to ``end`` whose label does not hit one before it; ``inches``: in which ``end`` steps are shown."""
    steps, free_from = [], 0.0
    for step in sorted(step for step in labels if step <= end):
        at = step / end * inches
        if at >= free_from:
            steps.append(step)
            free_from = at + 0.2 + _CHARACTER_INCHES * len(labels[step])
    return steps


def _step_and_count(step: int, dead: list[Outcome]) -> str:
    return f"{step:,} ({len(dead)} runs)" if len(dead) > 1 else f"{step:,}"


def _colour(outcome: Outcome, section: Section) -> str:
    return looks(section.groups)[outcome.run.label].colour


def _last_finite_before(outcome: Outcome, column: str) -> float | None:
    if outcome.failed_step is None:
        return None
    history = outcome.run.history
    before = history[history["step"] < outcome.failed_step][column].to_numpy(dtype=float)
    finite = before[np.isfinite(before)]
    return float(finite[-1]) if len(finite) else None


def _zoom_end(section: Section) -> int | None:
    """The first steps, where all failures lie early, or most of them do."""
    failures = [outcome.failed_step for outcome in section.outcomes if outcome.failed_step is not None]
    for last in (max(failures, default=None), round(float(np.quantile(failures, 0.75))) if failures else None):
        if last is not None and last < _ZOOM_BELOW * section.horizon:
            return min(section.horizon, round(1.4 * last) + 5)
    return None


def scale_y(axes: Axes, heights_of_crosses: list[float]) -> None:
    """Log; where a curve is not positive throughout, linear, or symmetric log if the values differ widely."""
    values = [np.asarray(line.get_ydata(), dtype=float) for line in axes.get_lines()]
    finite = np.concatenate([array[np.isfinite(array)] for array in values] or [np.array([])])
    if not len(finite):
        return
    positive = finite.min() > 0
    shown = max(float(np.quantile(finite, 1 - _CUT_SHARE)), *heights_of_crosses, float(np.median(np.abs(finite))))
    is_cut = finite.max() > _WIDE * shown > 0
    kept = finite[finite <= shown] if is_cut else finite
    typical = max(float(np.median(np.abs(kept))), 1e-12)
    low, high = float(kept.min()), float(kept.max())
    if positive:
        axes.set_yscale("log")
        limits = low / 1.5, high * 1.5
    elif np.abs(kept).max() > 100 * typical:
        axes.set_yscale("symlog", linthresh=10.0 ** round(np.log10(typical)))
        limits = 3 * low, 3 * high
    else:
        limits = low - 0.05 * (high - low), high + 0.05 * (high - low)
    if is_cut:
        axes.set_ylim(*limits)
        words = f"not shown: a few values up to {finite.max():.0e}"
        axes.set_title(words, loc="right", fontsize=8, color=FAINT, fontweight="normal")


def _draw_baselines(axes: Axes, section: Section) -> None:
    """One line a baseline at the median over seeds: each seed has its own held-out data."""
    styles: dict[str, Any] = {"floor": (0, (2, 2)), "reference": (0, (7, 2, 1.5, 2))}
    drawn: dict[tuple[str, float], str] = {}
    for note, runs in section.by_data():
        for role, style in styles.items():
            scores: dict[str, list[float]] = {}
            for run in runs:
                for name, found in baselines(run, role).items():
                    if section.compare.primary in found:
                        scores.setdefault(name, []).append(found[section.compare.primary])
            for name, values in scores.items():
                height = median(values)
                axes.axhline(height, color=FAINT, linewidth=1.1, linestyle=style, zorder=1)
                where = " on other data" if note else ""  # the table says whose
                text = f"{role}: {name.replace('_', ' ')}{where} {height:.{section.decimals}f}"
                drawn.setdefault((name, height), figure_text(text, 80))
    _write_heights(axes, sorted((height, text) for (_, height), text in drawn.items()))


def _write_heights(axes: Axes, drawn: list[tuple[float, str]]) -> None:
    """A text on each line: at the left, or at the right where the text below would be hit."""
    low, high = axes.get_ylim()
    needed = _TEXT_SHARE * max(high - low, 1e-12)
    last = {"left": -np.inf, "right": -np.inf}
    for height, text in drawn:
        side = next((side for side in last if height - last[side] >= needed), None)
        if side is None:
            continue  # the table names it
        last[side] = height
        axes.annotate(
            text, (0.01 if side == "left" else 0.99, height), xycoords=axes.get_yaxis_transform(), xytext=(0, 2),
            textcoords="offset points", fontsize=8, color="#6f6f6f", ha=side, zorder=6,
            path_effects=[withStroke(linewidth=2.5, foreground="white")],
        )  # fmt: skip


def _legend(figure: Figure, section: Section) -> None:
    handles = []
    for group in section.groups:
        look = looks(section.groups)[group.label]
        word = "finite" if all(map(was_nonfinite, group.failed)) else "without failure"
        word = "without refusals" if any(map(was_kept_out, group.failed)) else word
        text = f"{figure_text(group.label)}: {len(group.finite)} of {len(group.runs)} {word}"
        handles.append(Line2D([], [], color=look.colour, linestyle=look.line, linewidth=1.8, label=text))
    if any(group.failed for group in section.groups):
        cross: dict[str, Any] = {"marker": "x", "linestyle": "none", "markersize": 7, "markeredgewidth": 2}
        handles.append(Line2D([], [], color=FAINT, label="first failure", **cross))
    handles += branch_handles(section)
    longest = max(len(str(handle.get_label())) for handle in handles)
    ncols = min(len(handles), max(1, _LEGEND_CHARACTERS // (longest + 6)))
    num_rows = math.ceil(len(handles) / ncols)
    figure.set_figheight(figure.get_figheight() + _ROW_INCHES * max(0, num_rows - _ROWS_INCLUDED))
    figure.legend(handles=handles, loc="outside upper left", ncols=ncols, handlelength=2.4, columnspacing=1.4)


def _step_text(colour: str) -> dict[str, Any]:
    return {
        "fontsize": 8.5, "color": colour, "fontweight": "bold", "zorder": 6,
        "path_effects": [withStroke(linewidth=2.5, foreground="white")],
    }  # fmt: skip


def _cross_on_rail(axes: Axes, step: int, look: Look, height: float) -> None:
    axes.plot([step], [height], transform=axes.get_xaxis_transform(), clip_on=False, **_cross(look))


def _cross(look: Look) -> dict[str, Any]:
    return {
        "marker": "x", "color": look.colour, "markersize": 8, "markeredgewidth": 2.2, "linestyle": "none", "zorder": 5,
    }  # fmt: skip


def _line(look: Look) -> dict[str, Any]:
    return {"color": look.colour, "linestyle": look.line, "linewidth": 1.0, "alpha": 0.9}


def _finite(column: Any) -> Values:
    """Values with a gap where one is not finite: the cross says what a line cannot."""
    values = np.asarray(column, dtype=float)
    return np.where(np.isfinite(values), values, np.nan)
