"""The claims of a write-up against what was measured: held, refuted, or not testable and why."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from hpcstab.config import Claim
from hpcstab.report.facts import Row, figure
from hpcstab.report.sections import Group, Section, newest
from hpcstab.report.words import NOTHING, printable

Answer = Literal["held", "refuted", "not testable"]
_OTHER_DATA = {"data.source", "data.folder", "data.brains", "data.fields"}
"""Settings that say which data a variant is trained on and leave it the variant that a claim is about."""


@dataclass(frozen=True)
class ClaimAnswer:
    """One claim, how it was tested, what was measured in each seed, and the answer."""

    says: str
    where: str
    test: str
    measured: str
    answer: Answer
    reason: str


def answer_claims(section: Section, rows: Sequence[Row]) -> list[ClaimAnswer]:
    """The claims that the newest run declares, in their order; a claim holds only if it does in all seeds."""
    return [_answer(claim, section, rows) for claim in newest(section.runs).claims]


def _answer(claim: Claim, section: Section, rows: Sequence[Row]) -> ClaimAnswer:
    group = _group_for(claim, section)
    other = section.group(claim.below_variant, group.overrides) if claim.below_variant and group else None
    own = _rows_of(group, rows)
    obstacle = _obstacle(claim, section, group, other, own)
    measured = _measured(claim, own)
    if obstacle:
        return _as_answer(claim, group, measured, "not testable", obstacle)
    verdicts = _verdicts(claim, own, _rows_of(other, rows))
    if claim.below_variant:
        measured += f" against {_measured(claim, _rows_of(other, rows))}"
    return _as_answer(claim, group, measured, *_conclude(claim, verdicts, own))


def _group_for(claim: Claim, section: Section) -> Group | None:
    """The variant as it is; where it was run on other data alone, on those, unless the claim is about the data."""
    if (as_it_is := section.group(claim.variant, {})) is not None or claim.metric.startswith("data_"):
        return as_it_is
    chosen = [dict(group.overrides) for group in section.groups if set(group.overrides) <= _OTHER_DATA]
    return next((group for data in chosen if (group := section.group(claim.variant, data)) is not None), None)


def _obstacle(claim: Claim, section: Section, group: Group | None, other: Group | None, own: Sequence[Row]) -> str:
    """Why the claim cannot be tested here; empty where it can."""
    if claim.scales and section.scale not in claim.scales:
        return f"at scale {section.scale}; testable at {', '.join(claim.scales)}"
    if group is None:
        return f"no run of {claim.variant}{_only_overridden(claim.variant, section)}"
    if claim.below_variant and other is None:
        same_data = " on the same data" * bool(group.overrides)
        return f"no run of {claim.below_variant}{same_data or _only_overridden(claim.below_variant, section)}"
    if claim.needs == "cuda" and not all(row["cuda"] for row in own):
        return "needs a CUDA device; these runs had none"
    return ""


def _verdicts(claim: Claim, own: Sequence[Row], others: Sequence[Row]) -> list[bool | None]:
    """One verdict a run; None where its value is missing or not final."""
    if claim.range is not None:
        return [_in_range(claim, _value(claim.metric, row)) for row in own]
    verdicts: list[bool | None] = []
    for row in own:
        partners = [_value(claim.metric, other) for other in others if other["seed"] == row["seed"]]
        value = _value(claim.metric, row)
        known = [partner for partner in partners if partner is not None]
        verdicts.append(None if value is None or not known else all(value < partner for partner in known))
    return verdicts


def _conclude(claim: Claim, verdicts: Sequence[bool | None], own: Sequence[Row]) -> tuple[Answer, str]:
    """Refuted by one run that contradicts; held only if all runs are there and agree."""
    held, n = sum(verdict is True for verdict in verdicts), len(verdicts)
    if any(verdict is False for verdict in verdicts):
        return "refuted", f"held in {held} of {n}"
    missing = [row for verdict, row in zip(verdicts, own, strict=True) if verdict is None]
    if missing:
        states = ", ".join(dict.fromkeys(str(row["state"]) for row in missing))
        return "not testable", f"{len(missing)} of {n} runs have no final {claim.metric} ({states}); held in {held}"
    return "held", f"in {held} of {n}"


def _value(column: str, row: Mapping[str, object]) -> float | None:
    """A cell that will not change any more; a first step that never came is infinity once the run has ended."""
    value = figure(row, column)
    if row["state"] in ("completed", "diverged", "halted"):
        return math.inf if value is None and _is_first_step(column) else value
    if _is_first_step(column) or column in ("steps", "evaluations"):
        return value
    return value if value == 1 and column in ("nonfinite", "diverged") else None


def _is_first_step(column: str) -> bool:
    return column in ("first_nonfinite_step", "first_nonfinite_epoch", "first_failure_step")


def _in_range(claim: Claim, value: float | None) -> bool | None:
    """A value that is not finite lies in no range, not even in an open one."""
    if value is None or claim.range is None:
        return None
    low, high = claim.range
    if not math.isfinite(value) and not _is_first_step(claim.metric):
        return False
    return (low is None or value >= low) and (high is None or value <= high)


def _as_answer(claim: Claim, group: Group | None, measured: str, answer: Answer, reason: str) -> ClaimAnswer:
    label = group.full_label if group is not None else claim.variant
    if claim.range is not None:
        test = f"{label}: {claim.metric} {_span(*claim.range)}"
    else:
        test = f"{label}: {claim.metric} below that of {claim.below_variant}, same seed"
    says, where, test = (printable(text) for text in (claim.says, claim.where, test))
    return ClaimAnswer(says, where, test, measured or NOTHING, answer, printable(reason))


def _span(low: float | None, high: float | None) -> str:
    if low is None and high is None:
        return "finite"
    if low is None or high is None:
        return f"at least {_short(low)}" if low is not None else f"at most {_short(high)}"
    return f"= {_short(low)}" if low == high else f"from {_short(low)} to {_short(high)}"


def _short(value: float | None) -> str:
    """Whole numbers in full, others with four digits."""
    if value is None or not math.isfinite(value):
        return NOTHING if value is None else str(value)
    return f"{value:,.0f}" if value == round(value) else f"{value:.4g}"


def _measured(claim: Claim, rows: Sequence[Row]) -> str:
    values = [_value(claim.metric, row) for row in rows]
    never = "never" if _is_first_step(claim.metric) else "inf"
    return ", ".join(never if value == math.inf else _short(value) for value in values)


def _rows_of(group: Group | None, rows: Sequence[Row]) -> list[Row]:
    return [row for row in rows if group is not None and row["label"] == group.full_label]


def _only_overridden(variant: str, section: Section) -> str:
    labels = [group.full_label for group in section.groups if group.variant == variant]
    return f" without --set (there is {', '.join(labels)})" if labels else ""
