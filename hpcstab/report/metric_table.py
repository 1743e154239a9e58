"""Every metric of the task at the horizon: the primary one decides, the others say what the network does."""

from __future__ import annotations

import math
from collections.abc import Sequence
from statistics import median

from hpcstab.report.facts import Row, figure
from hpcstab.report.outcome import baselines
from hpcstab.report.sections import Section
from hpcstab.report.tables import MAX_LISTED, Table
from hpcstab.report.words import NOTHING, printable, with_unit


def metric_table(section: Section, rows: Sequence[Row]) -> Table:
    """One row a metric: its value by seed in every variant, that of the baselines, and what it means.

    ``rows``: those of the section's runs.csv.
    """
    metrics = {str(metric["name"]): metric for run in section.runs for metric in run.metrics}
    names = [(role, name) for role in ("floor", "reference") for name in _baseline_names(section, role)]
    columns = (
        "metric",
        *(group.label for group in section.groups),
        *(f"{role}: {name.replace('_', ' ')}" for role, name in names),
        "better",
        "what it is",
    )
    table = []
    for metric, about in metrics.items():
        of_groups = [
            _values_text([_cell(row, metric) for row in rows if row["label"] == group.full_label])
            for group in section.groups
        ]
        of_baselines = [_values_text(_baseline_scores(section, role, name, metric)) for role, name in names]
        texts = printable(about["direction"]), printable(about["about"])
        table.append((with_unit(about), *of_groups, *of_baselines, *texts))
    return Table(columns, tuple(table))


def _baseline_names(section: Section, role: str) -> list[str]:
    return list(dict.fromkeys(name for run in section.runs for name in baselines(run, role)))


def _baseline_scores(section: Section, role: str, name: str, metric: str) -> list[float | str]:
    """By seed; the runs of one seed share their held-out data, but not all of them have each baseline."""
    by_seed: dict[int, float] = {}
    for run in section.runs:
        score = baselines(run, role).get(name, {}).get(metric)
        if score is not None:
            by_seed[run.seed] = score
    return [score for _, score in sorted(by_seed.items())]


def _cell(row: Row, metric: str) -> float | str:
    """A dead run has no final figure, and one under way has none yet."""
    value = figure(row, metric)
    if row["diverged"] and (value is None or math.isnan(value)):
        return "died"
    return NOTHING if value is None else value


def _values_text(cells: Sequence[float | str]) -> str:
    """All values while they are few, one where they are equal; beyond, the median of those there are."""
    if not cells:
        return NOTHING
    texts = [cell if isinstance(cell, str) else f"{cell:.4g}" for cell in cells]
    if len(set(texts)) == 1:
        return texts[0]
    if len(cells) <= MAX_LISTED:
        return ", ".join(texts)
    scored = sorted(cell for cell in cells if not isinstance(cell, str) and math.isfinite(cell))
    if not scored:
        return "no figure"
    missing = f", {len(cells) - len(scored)} of {len(cells)} without" if len(scored) < len(cells) else ""
    return f"{median(scored):.4g} [{scored[0]:.4g}, {scored[-1]:.4g}]{missing}"
