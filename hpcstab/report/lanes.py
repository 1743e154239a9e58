"""One lane a run: from its first step to its failure or the horizon, and how many are left at which step.

A rerun begins at the step that it goes on from: before it, it could not have failed (delayed entry).
"""

from __future__ import annotations

from typing import Any

from matplotlib.axes import Axes
from matplotlib.figure import Figure

from hpcstab.report.outcome import Outcome, was_kept_out, was_nonfinite
from hpcstab.report.sections import Group, Section
from hpcstab.report.style import BRANCH, FAINT, figure_text, looks
from hpcstab.report.words import NOTHING

_LANE_IN = 0.23
_LONGEST_NAME = 40
_TABLE_AT = (0.0, 0.25, 0.5, 0.75, 1.0)


def draw_lanes(section: Section, figure: Figure) -> None:
    """The lanes above, the number of runs without a failure below, on one axis of steps."""
    outcomes = section.outcomes
    table_in = 0.21 * (len(section.groups) + 1)
    lanes_in = _LANE_IN * (len(outcomes) + 1)
    figure.set_size_inches(9.0, lanes_in + table_in + 0.75)
    lanes, table = figure.subplots(2, 1, sharex=True, gridspec_kw={"height_ratios": [lanes_in, table_in]})
    for position, outcome in enumerate(outcomes):
        look = looks(section.groups)[outcome.run.label]
        _draw_lane(lanes, position, outcome, section.horizon, look.colour)
    names = [f"{figure_text(outcome.run.label, _LONGEST_NAME)}  seed {outcome.seed}" for outcome in outcomes]
    lanes.set_yticks(range(len(outcomes)), names)
    lanes.set_ylim(len(outcomes) - 0.4, -0.6)
    lanes.set_xlim(-0.02 * section.horizon, section.horizon * 1.06)
    lanes.grid(axis="y", visible=False)
    lanes.tick_params(axis="y", length=0)
    lanes.tick_params(axis="x", labelbottom=True)
    lanes.set_xlabel("step")
    _draw_table(table, section)


def at_risk(group: Group, step: int) -> list[Outcome]:
    """The runs that have begun by ``step``: a rerun begins at the step that it goes on from."""
    return [outcome for outcome in group.outcomes if outcome.run.entry_step <= step]


def still_finite(group: Group, step: int) -> tuple[int, int]:
    """(runs known to be finite after ``step`` steps, runs of which nothing is known at that step), of those at risk."""
    finite = unknown = 0
    for outcome in at_risk(group, step):
        if outcome.failed_step is not None:
            finite += outcome.failed_step >= step
        elif outcome.reached or outcome.seen_steps >= max(step, 1):
            finite += 1
        else:
            unknown += 1
    return finite, unknown


def _draw_lane(axes: Axes, position: int, outcome: Outcome, horizon: int, colour: str) -> None:
    start = min(outcome.run.entry_step, horizon)
    end = max(start, outcome.failed_step if outcome.failed_step is not None else outcome.seen_steps)
    axes.plot([0, horizon], [position, position], color="#efefef", linewidth=4, solid_capstyle="round", zorder=1)
    if end > start:
        axes.plot([start, end], [position, position], color=colour, linewidth=4, solid_capstyle="butt", zorder=2)
    if start:
        axes.plot([0, start], [position, position], color=FAINT, linewidth=1.0, linestyle=(0, (2, 2)), zorder=2)
        axes.plot([start], [position], color=colour, zorder=3, **BRANCH)
    if outcome.failed_step is not None:
        axes.plot([end], [position], marker="x", color=colour, markersize=8, markeredgewidth=2.2, zorder=3)
        _write(
            axes, _draw_what_came_after(axes, position, outcome, colour), position, lane_text(outcome), horizon, colour
        )
    elif outcome.reached:
        axes.plot([end], [position], marker="|", color=colour, markersize=10, markeredgewidth=2, zorder=3)
        axes.text(end + 0.01 * horizon, position, "finite", va="center", fontsize=8.5, color=colour)
    else:
        state = outcome.run.state if outcome.seen_steps else f"{outcome.run.state}, no step recorded"
        _write(axes, end, position, figure_text(f"? {state}"), horizon, FAINT)


def _draw_what_came_after(axes: Axes, position: int, outcome: Outcome, colour: str) -> int:
    """A thin line where the gate kept a failure out of the state and the run went on; where the lane ends."""
    assert outcome.failed_step is not None
    if not was_kept_out(outcome):
        return outcome.failed_step
    end = max(outcome.failed_step, outcome.seen_steps)
    axes.plot([outcome.failed_step, end], [position, position], color=colour, linewidth=1.4, zorder=2)
    return end


def lane_text(outcome: Outcome) -> str:
    step = outcome.failed_step
    if was_kept_out(outcome):
        return f"refused from step {step:,} on, {outcome.run.state} at {outcome.seen_steps:,}"
    return f"{'non-finite' if was_nonfinite(outcome) else 'failed'} at step {step:,}"


def _write(axes: Axes, end: int, position: int, text: str, horizon: int, colour: str) -> None:
    """Behind the end of a lane, or before it where there is no room behind."""
    behind = end < 0.75 * horizon
    axes.text(
        end + (0.015 if behind else -0.02) * horizon, position, text, color=colour, fontsize=8.5, va="center",
        ha="left" if behind else "right", zorder=4, bbox={"facecolor": "white", "edgecolor": "none", "pad": 1.5},
    )  # fmt: skip


def _draw_table(axes: Axes, section: Section) -> None:
    """Counts under the axis, as under a survival curve."""
    axes.set_axis_off()
    rows = len(section.groups)
    steps = [round(part * section.horizon) for part in _TABLE_AT]
    beside: dict[str, Any] = {"transform": axes.get_yaxis_transform(), "ha": "right", "va": "center"}
    axes.text(-0.008, 0.0, "without failure at", color=FAINT, **beside)
    for step in steps:
        axes.text(step, 0.0, f"{step:,}", ha="center", va="center", color=FAINT, fontsize=8.5)
    for row, group in enumerate(section.groups, start=1):
        colour = looks(section.groups)[group.label].colour
        axes.text(-0.008, row, figure_text(group.label), color=colour, **beside)
        for step in steps:
            finite, unknown = still_finite(group, step)
            text = f"{finite}/{len(at_risk(group, step))}" + (f" ({unknown}?)" if unknown else "")
            text = text if at_risk(group, step) else NOTHING
            axes.text(step, row, text, ha="center", va="center", color=colour, fontsize=8.5)
    axes.set_ylim(rows + 0.5, -0.6)
