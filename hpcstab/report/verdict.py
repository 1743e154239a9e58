"""The answer in one sentence, in the words of the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from hpcstab.report.compare import ALPHA, Pairing, smallest_p
from hpcstab.report.interventions import refusals_text
from hpcstab.report.outcome import Outcome, baselines, was_declared, was_kept_out, was_nonfinite, was_spared
from hpcstab.report.sections import Group, Section
from hpcstab.report.words import signed, unit_of

_MAX_CLAUSES = 4
_NAMED = ("before", "after", "cured")


def verdict_sentence(section: Section, pairings: Sequence[Pairing]) -> str:
    """One sentence: what became of each variant, and what that can show."""
    told = [group for group in section.groups if len(section.groups) <= _MAX_CLAUSES or _is_told_in_full(group)]
    clauses = [f"{group.label} {group_clause(group, section)}" for group in told]
    clauses += _others_clauses([group for group in section.groups if group not in told])
    tail = _certainty(section, pairings)
    return f"{section.title}: " + "; ".join([*clauses, tail]) + "."


def _is_told_in_full(group: Group) -> bool:
    """Those that have names, and those of which the gate had to refuse something."""
    return group.label in _NAMED or bool(refusals_text(group.runs))


def group_clause(group: Group, section: Section) -> str:
    """What became of the runs of one variant; every run is in exactly one part of the clause."""
    n = len(group.runs)
    word = "seeds" if n == len(group.seeds) else "runs"
    parts = []
    if group.failed:
        parts.append(_failed_clause(group, n, word))
    parts += [_finite_clause(outcomes, how, n, word, section) for how, outcomes in _by_learning(group.finite)]
    parts += _undecided_clauses(group, n)
    return ", ".join(parts)


def _failed_clause(group: Group, n: int, word: str) -> str:
    """What failed, when, and what stood between it and the state: a declared fault is called so."""
    failed = group.failed
    nonfinite = all(map(was_nonfinite, failed))
    kept_out = all(map(was_kept_out, failed))
    what = ("met non-finite values" if kept_out else "went non-finite") if nonfinite else "failed"
    steps = ", ".join(str(outcome.failed_step) for outcome in failed)
    first = f"at step {steps}" if len(failed) == 1 else f"first at steps {steps}"
    num_declared = sum(map(was_declared, failed))
    if num_declared == len(failed):
        first += f", the declared fault{'s' * (num_declared > 1)}"
    elif num_declared:
        first += f", {num_declared} of them declared faults"
    details = "; ".join(filter(None, (first, refusals_text([outcome.run for outcome in failed]))))
    return f"{what} in {len(failed)} of {n} {word} ({details})"


def _others_clauses(groups: Sequence[Group]) -> list[str]:
    """Variants beyond those that have names, in short: who failed in every run, in some, in none."""
    told: dict[str, list[str]] = {}
    for group in groups:
        n, failed = len(group.runs), len(group.failed)
        learned = sum(outcome.run.answer("learned") == "yes" for outcome in group.finite)
        if failed == n:
            told.setdefault("failed in every run", []).append(group.label)
        elif failed:
            told.setdefault("runs failed", []).append(f"{group.label} {failed} of {n}")
        elif len(group.finite) == n:
            told.setdefault("stayed finite in every run", []).append(f"{group.label} (learned in {learned} of {n})")
        else:
            told.setdefault("not decided yet", []).append(group.label)
    return [f"{', '.join(labels)} {what}" for what, labels in told.items()]


def _finite_clause(outcomes: Sequence[Outcome], how: str, n: int, word: str, section: Section) -> str:
    gains = [outcome.gain for outcome in outcomes if outcome.gain is not None and math.isfinite(outcome.gain)]
    details = []
    if gains:
        details.append(f"{_gain_text(gains, section)} against {_floor_name(outcomes)}")
    rising = sum(outcome.rising is True for outcome in outcomes)
    if rising:
        details.append("still rising" if rising == len(outcomes) else f"still rising in {rising}")
    spared = [outcome.run for outcome in outcomes if was_spared(outcome.run)]
    if spared:
        steps = ", ".join(str(step) for step in dict.fromkeys(run.first_failure_step for run in spared))
        details.append(f"the gate refused the declared fault at step {steps} in {len(spared)}")
    met = [outcome.run.first_failure_step for outcome in outcomes if not was_spared(outcome.run)]
    later = [str(step) for step in met if step is not None]
    if later:
        details.append(f"{len(later)} failed beyond it, at step {', '.join(later)}")
    refusals = refusals_text([outcome.run for outcome in outcomes])
    if refusals:
        details.append(refusals)
    brackets = f" ({', '.join(details)})" if details else ""
    share = f"{len(outcomes)} of {n} {word}"
    return how.format(share=share) + brackets


def _by_learning(outcomes: Sequence[Outcome]) -> list[tuple[str, list[Outcome]]]:
    """Finite runs split by the other two answers; a masked run is named as such first."""
    kinds: list[tuple[str, Callable[[Outcome], bool]]] = [
        ("stayed finite only with a mask or a refused step in {share}", lambda o: o.run.answer("unmasked") == "no"),
        ("stayed finite and learned in {share}", lambda o: o.run.answer("learned") == "yes"),
        ("stayed finite in {share} but did not learn", lambda o: o.run.answer("learned") == "no"),
        ("stayed finite in {share}, learning unknown", lambda o: True),
    ]
    left, found = list(outcomes), []
    for how, belongs in kinds:
        members = [outcome for outcome in left if belongs(outcome)]
        left = [outcome for outcome in left if outcome not in members]
        if members:
            found.append((how, members))
    return found


def _undecided_clauses(group: Group, n: int) -> list[str]:
    states = dict.fromkeys(outcome.run.state for outcome in group.undecided)
    return [_state_clause(state, [o for o in group.undecided if o.run.state == state], n) for state in states]


def _state_clause(state: str, outcomes: Sequence[Outcome], n: int) -> str:
    steps = ", ".join(str(outcome.seen_steps) for outcome in outcomes)
    share = f"{len(outcomes)} of {n}"
    words = {
        "running": f"{share} still running, finite so far (after {steps} steps)",
        "queued": f"{share} not started",
        "unknown": f"{share} not known to have ended, finite so far (after {steps} steps)",
        "failed": f"{share} crashed (after {steps} steps; a crash is no answer about stability)",
        "unreadable": f"{share} left records that cannot be read",
    }
    return words.get(state, f"{share} {state} before the horizon, finite so far (after {steps} steps)")


def _certainty(section: Section, pairings: Sequence[Pairing]) -> str:
    against_before = [pairing for pairing in pairings if pairing.second.startswith("before")]
    if not against_before:
        return "nothing was run to compare with, so no effect can be stated"
    n = min((len(pairing.scores) for pairing in against_before if pairing.scores), default=0)
    if n == 0:
        return "no seed is shared with before, so there are no pairs"
    if smallest_p(n) >= ALPHA:
        return f"with n={n} paired seed{'s' * (n > 1)} p < 0.05 cannot be reached"
    texts = [_short(pairing) for pairing in against_before if pairing.scores]
    return f"paired by seed, {', '.join(texts)}"


def _short(pairing: Pairing) -> str:
    p = "" if pairing.p_value is None else f", p = {pairing.p_value:.2g}"
    return f"{pairing.first} beats {pairing.second} in {pairing.wins} of {len(pairing.scores)}{p}"


def _gain_text(gains: Sequence[float], section: Section) -> str:
    unit, digits = unit_of(section.primary), section.decimals
    text = signed(median(gains), digits)
    if len(gains) > 1 and round(max(gains), digits) != round(min(gains), digits):
        text += f" [{signed(min(gains), digits)}, {signed(max(gains), digits)}]"
    return f"{text} {unit}".rstrip()


def _floor_name(outcomes: Sequence[Outcome]) -> str:
    names = [name for outcome in outcomes for name in baselines(outcome.run, "floor")]
    unique = list(dict.fromkeys(names))
    return f"the {unique[0].replace('_', ' ')}" if len(unique) == 1 else "the best floor"
