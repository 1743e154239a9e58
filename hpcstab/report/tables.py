"""The tables of the report as text cells: one building, shown in HTML, Markdown and the terminal alike."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import median

from hpcstab.report.claims import ClaimAnswer
from hpcstab.report.compare import Pairing, smallest_p
from hpcstab.report.differences import ConfigDifference, Setter
from hpcstab.report.interventions import interventions_text
from hpcstab.report.outcome import Outcome, baselines
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Group, Section
from hpcstab.report.words import DAGGER, NOTHING, signed, with_unit

_REFUSED = ("refused_nonfinite", "refused_declared", "spikes")
MAX_LISTED = 5
"""Up to so many runs their values are all listed; beyond, median [min, max]."""


@dataclass(frozen=True)
class Table:
    """Columns and rows of text; ``keys`` names what a row is about, for its colour."""

    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    keys: tuple[str, ...] = ()


def variant_table(section: Section) -> Table:
    """One row a variant, then the baselines on the same held-out data."""
    name = with_unit(section.primary)
    columns = (
        "variant",
        "seeds",
        "diverged",
        "first non-finite step",
        f"{name} at step {section.horizon:,}",
        f"best {name}",
        "still rising",
        "skipped",
        "masked",
        "stable",
    )
    rows = [_variant_row(group, section) for group in section.groups]
    floors = _baseline_rows(section)
    labels = [group.label for group in section.groups]
    return Table(columns, tuple(rows + floors), (*labels, *("" for _ in floors)))


def pairing_table(pairings: Sequence[Pairing], section: Section) -> Table:
    """One row a comparison: who wins by which level, P(beats), p and what p could be at best."""
    columns = (
        "comparison",
        "pairs",
        "wins / ties / losses",
        "decided by",
        "P(beats)",
        "p",
        "smallest p",
        f"difference of {with_unit(section.primary)} where both stayed finite",
    )
    return Table(columns, tuple(_pairing_row(pairing, section) for pairing in pairings))


def difference_table(differences: Sequence[ConfigDifference], section: Section) -> Table:
    """One row a key: its value in every variant, and the fixes that set it."""
    rows = tuple((d.key, *d.values, _setters_text(d.setters)) for d in differences)
    return Table(("key", *(group.label for group in section.groups), "set by"), rows)


def fix_table(differences: Sequence[ConfigDifference]) -> Table:
    """The fixes behind the differences: kind and reason."""
    setters = dict.fromkeys(setter for d in differences for setter in d.setters if setter is not None)
    return Table(("fix", "kind", "why"), tuple((s.name, s.kind, s.why) for s in setters))


def judgement_table(section: Section) -> Table:
    """One row a run: three answers, stable only where all are yes, and how often gate, guards and ladder acted."""
    rows = []
    for outcome in section.outcomes:
        run = outcome.run
        answers = [run.answer(question) for question in ("finite", "learned", "unmasked")]
        failed = "" if run.first_failure_step is None else str(run.first_failure_step)
        stable = "yes" if run.judgement["stable"] else "no"
        row = (f"{run.label} s{run.seed}", run.state, str(run.steps), failed, *answers, stable)
        rows.append((*row, interventions_text([run]) or NOTHING))
    columns = (
        "run",
        "state",
        "steps",
        "first failure",
        "finite?",
        "learned?",
        "unmasked?",
        "stable",
        "what intervened",
    )
    return Table(columns, tuple(rows), tuple(run.label for run in section.runs))


def claim_table(answers: Sequence[ClaimAnswer]) -> Table:
    """One row a claim of the write-up."""
    rows = tuple((a.says, a.where, a.test, a.measured, a.answer, a.reason) for a in answers)
    return Table(("the write-up says", "where", "tested as", "measured, by seed", "answer", "because"), rows)


def terminal_table(sections: Sequence[Section]) -> Table:
    """The variant tables of all sections as one, with model and scale where there are several."""
    tables = [variant_table(section) for section in sections]
    if len(sections) == 1:
        return tables[0]
    columns = list(tables[0].columns)
    columns[4], columns[5] = "final", "best"
    rows = [(s.model, s.scale, *row) for s, table in zip(sections, tables, strict=True) for row in table.rows]
    return Table(("model", "scale", *columns), tuple(rows))


def _variant_row(group: Group, section: Section) -> tuple[str, ...]:
    n = len(group.runs)
    rising = [outcome.rising for outcome in group.outcomes if outcome.rising is not None]
    stable = sum(bool(run.judgement["stable"]) for run in group.runs)
    return (
        group.label,
        str(n) if n == len(group.seeds) else f"{n} runs of {len(group.seeds)}",
        f"{sum(run.diverged for run in group.runs)} of {n}",
        _steps_text(group),
        _values_text([_final_cell(outcome) for outcome in group.outcomes], section),
        _best_text(group, section),
        f"{sum(rising)} of {n}" if rising else NOTHING,
        _count_text(group, "outcome"),
        _count_text(group, "num_masked"),
        f"{stable} of {n}",
    )


def _steps_text(group: Group) -> str:
    """First non-finite steps of all runs, in the order of their seeds."""
    steps = [run.first_nonfinite_step for run in group.runs]
    if all(step is None for step in steps):
        return "none"
    if len(steps) <= MAX_LISTED:
        return ", ".join("none" if step is None else str(step) for step in steps)
    known = [step for step in steps if step is not None]
    return f"{len(known)} of {len(steps)}: {median(known):g} [{min(known)}, {max(known)}]"


def _final_cell(outcome: Outcome) -> float | str | None:
    """A dead run has no final score, whatever it scored before; a run under way has none yet."""
    if outcome.run.diverged and outcome.failed_step is not None:
        return "died"
    return outcome.final if outcome.final is not None else outcome.run.state


def _best_text(group: Group, section: Section) -> str:
    """Best scores; a dagger where the run died afterwards."""
    if len(group.runs) > MAX_LISTED:
        return _values_text([outcome.best for outcome in group.outcomes], section)
    texts = [
        _number_text(o.best, section.decimals) + DAGGER * (o.run.diverged and o.best is not None)
        for o in group.outcomes
    ]
    return ", ".join(texts) if set(texts) != {NOTHING} else NOTHING


def _values_text(cells: Sequence[float | str | None], section: Section) -> str:
    """All values while they are few; beyond, the median over all runs, where a run without a score ranks last."""
    if len(cells) <= MAX_LISTED:
        texts = [_number_text(cell, section.decimals) for cell in cells]
        return texts[0] if len(set(texts)) == 1 and not _is_number(cells[0]) else ", ".join(texts)
    worst = -math.inf * section.sign
    ranked = sorted((cell if _is_number(cell) else worst for cell in cells), key=lambda v: section.sign * float(v or 0))
    scored = [value for value in ranked if math.isfinite(float(value or 0))]
    middle = float(median([float(value or 0) for value in ranked]))
    text = _number_text(middle, section.decimals) if math.isfinite(middle) else "no score"
    if not scored:
        return "no score"
    spread = f"[{_number_text(scored[0], section.decimals)}, {_number_text(scored[-1], section.decimals)}]"
    missing = f", {len(cells) - len(scored)} of {len(cells)} without" if len(scored) < len(cells) else ""
    return f"{text} {spread}{missing}"


def _is_number(cell: float | str | None) -> bool:
    return isinstance(cell, float) and not math.isnan(cell)


def _number_text(cell: float | str | None, decimals: int) -> str:
    if cell is None:
        return NOTHING
    return cell if isinstance(cell, str) else f"{cell:.{decimals}f}"


def _count_text(group: Group, column: str) -> str:
    """Steps not applied, or firings of masks, summed over the runs; – where nothing was recorded."""
    counted = [run.history for run in group.runs if run.steps and column in run.history]
    if not counted:
        return NOTHING
    if column != "outcome":  # a reset of running statistics is a mask without a row
        return str(
            max(int(sum(frame[column].sum() for frame in counted)), sum(run.count("masked") for run in group.runs))
        )
    skipped = sum(int((frame["outcome"] == "skipped").sum()) for frame in counted)
    # steps that were skipped and came again after a rollback have no such row any more
    return str(max(skipped, sum(run.count(what) for run in group.runs for what in _REFUSED)))


def _baseline_rows(section: Section) -> list[tuple[str, ...]]:
    """The baselines by the data of the runs; where other data give the same scores, they stand there once."""
    rows: dict[tuple[str, ...], tuple[str, ...]] = {}
    for note, runs in section.by_data():
        for role in ("floor", "reference"):
            for name in dict.fromkeys(name for run in runs for name in baselines(run, role)):
                row = _baseline_row(name, role, note, runs, section)
                rows.setdefault((role, name, *row[1:]), row)
    return list(rows.values())


def _baseline_row(name: str, role: str, note: str, runs: Sequence[LoadedRun], section: Section) -> tuple[str, ...]:
    """A baseline's score by seed; the variants of one seed share their held-out data and so the score."""
    by_seed: dict[int, float] = {}
    for run in runs:
        score = baselines(run, role).get(name, {}).get(section.compare.primary)
        if score is not None:
            by_seed[run.seed] = score
    text = _values_text([score for _, score in sorted(by_seed.items())], section)
    return (f"{role}: {name.replace('_', ' ')}{note}", str(len(by_seed)), "", "", text, "", "", "", "", "")


def _pairing_row(pairing: Pairing, section: Section) -> tuple[str, ...]:
    n = len(pairing.scores)
    undecided = f" (+{pairing.undecided} undecided)" if pairing.undecided else ""
    levels = ", ".join(f"{level.replace('_', ' ')} {count}" for level, count in pairing.levels.items())
    differences = ", ".join(signed(value, section.decimals) for value in pairing.differences.values())
    return (
        f"{pairing.first} against {pairing.second}",
        str(n),
        f"{pairing.wins} / {pairing.ties} / {pairing.losses}{undecided}",
        levels or NOTHING,
        _probability_text(pairing),
        NOTHING if pairing.p_value is None else f"{pairing.p_value:.2g}",
        f"{smallest_p(n):.2g}" if n else NOTHING,
        f"{differences} ({len(pairing.differences)} of {n} seeds)" if differences else f"{NOTHING} (0 of {n} seeds)",
    )


def _probability_text(pairing: Pairing) -> str:
    if not pairing.scores:
        return NOTHING
    low, high = pairing.bounds
    if pairing.undecided:
        return f"between {low:.2f} and {high:.2f}"
    return f"{pairing.probability:.2f}"


def _setters_text(setters: Sequence[Setter | None]) -> str:
    named = dict.fromkeys(f"{s.name} ({s.kind})" for s in setters if s is not None)
    return ", ".join(named) or "base"
