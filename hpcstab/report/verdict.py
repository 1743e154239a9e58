"""The answer in one sentence, and how sure it is, in the words of the field."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from statistics import median

from hpcstab.report.compare import ALPHA, Pairing, failure_rate_bound, smallest_p
from hpcstab.report.differences import ConfigDifference, config_differences, declared_flaws
from hpcstab.report.load import DATA_UPKEEP
from hpcstab.report.outcome import Outcome, baselines
from hpcstab.report.sections import Group, Section, declared_digest
from hpcstab.report.words import printable, signed, unit_of

_MAX_CLAUSES = 4
_NAMED = ("before", "after", "cured")


def verdict_sentence(section: Section, pairings: Sequence[Pairing]) -> str:
    """One sentence: what became of each variant, and what that can show."""
    told = [group for group in section.groups if len(section.groups) <= _MAX_CLAUSES or group.label in _NAMED]
    clauses = [f"{group.label} {group_clause(group, section)}" for group in told]
    clauses += _others_clauses([group for group in section.groups if group not in told])
    tail = _certainty(section, pairings)
    return f"{section.model} at scale {section.scale}, {section.horizon:,} steps: " + "; ".join([*clauses, tail]) + "."


def certainty_notes(section: Section, pairings: Sequence[Pairing]) -> list[str]:
    """What a careful reader must know before using the verdict, one sentence each."""
    notes = [
        *_survival_notes(section),
        *_pairing_notes(pairings),
        *_fairness_notes(section),
        *declared_flaws(section),
        *_record_notes(section),
    ]
    return [f"{note}." for note in notes]


def group_clause(group: Group, section: Section) -> str:
    """What became of the runs of one variant; every run is in exactly one part of the clause."""
    n = len(group.runs)
    word = "seeds" if n == len(group.seeds) else "runs"
    parts = []
    if group.failed:
        nonfinite = all(outcome.run.first_nonfinite_step == outcome.failed_step for outcome in group.failed)
        what = "went non-finite" if nonfinite else "failed"
        steps = ", ".join(str(outcome.failed_step) for outcome in group.failed)
        first = f"at step {steps}" if len(group.failed) == 1 else f"first at steps {steps}"
        parts.append(f"{what} in {len(group.failed)} of {n} {word} ({first})")
    parts += [_finite_clause(outcomes, how, n, word, section) for how, outcomes in _by_learning(group.finite)]
    parts += _undecided_clauses(group, n)
    return ", ".join(parts)


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
    later = [str(outcome.run.first_failure_step) for outcome in outcomes if outcome.run.first_failure_step is not None]
    if later:
        details.append(f"{len(later)} failed beyond it, at step {', '.join(later)}")
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
        "failed": f"{share} crashed (after {steps} steps; a crash is no answer about stability)",
        "unreadable": f"{share} left records that cannot be read",
    }
    return words.get(state, f"{share} {state} before the horizon, finite so far (after {steps} steps)")


def _certainty(section: Section, pairings: Sequence[Pairing]) -> str:
    against_before = [pairing for pairing in pairings if pairing.second.startswith("before")]
    if not against_before:
        return "nothing was run to compare with, so no effect can be stated"
    n = min(len(pairing.scores) for pairing in against_before)
    if n == 0:
        return "no seed is shared with before, so there are no pairs"
    if smallest_p(n) >= ALPHA:
        return f"with n={n} paired seed{'s' * (n > 1)} p < 0.05 cannot be reached"
    texts = [f"{_short(pairing)}" for pairing in against_before]
    return f"paired by seed, {', '.join(texts)}"


def _short(pairing: Pairing) -> str:
    p = "" if pairing.p_value is None else f", p = {pairing.p_value:.2g}"
    return f"{pairing.first} beats {pairing.second} in {pairing.wins} of {len(pairing.scores)}{p}"


def _survival_notes(section: Section) -> list[str]:
    """What n runs without a failure still allow."""
    whole: dict[int, list[str]] = {}
    for group in section.groups:
        if len(group.finite) == len(group.runs):
            whole.setdefault(len(group.runs), []).append(group.label)
    return [
        f"No failure in {n} run{'s' * (n > 1)} ({', '.join(labels)}) still allows a failure rate of up to"
        f" {failure_rate_bound(n) * 100:.0f} % (exact upper 95 % bound, one-sided)"
        for n, labels in whole.items()
    ]


def _pairing_notes(pairings: Sequence[Pairing]) -> list[str]:
    sizes = sorted({len(pairing.scores) for pairing in pairings} - {0})
    notes = [
        f"With {n} pair{'s' * (n > 1)} the smallest p of a two-sided sign test is {smallest_p(n):.2g}" for n in sizes
    ]
    notes += [
        f"Seeds without a partner in {pairing.first} against {pairing.second}, in no pair:"
        f" {', '.join(map(str, pairing.unpaired))}"
        for pairing in pairings
        if pairing.unpaired
    ]
    if len(pairings) > 1 and any(smallest_p(n) < ALPHA for n in sizes):
        notes.append(f"The p values are not corrected for the {len(pairings)} comparisons")
    return notes


def _fairness_notes(section: Section) -> list[str]:
    notes = []
    differences = config_differences(section)
    batches = next((d.values for d in differences if d.key == "data.batch_size"), None)
    if batches:
        users = {
            size: [g.label for g, own in zip(section.groups, batches, strict=True) if own == size] for size in batches
        }
        sizes = "; ".join(f"{size} in {', '.join(labels)}" for size, labels in users.items())
        notes.append(
            f"Steps are counted, not samples: the batch sizes differ ({sizes}), so that at one step the variants"
            " have seen different numbers of samples"
        )
    if section.groups[0].variant == "before":
        changed = [sum(_changes(d, index) for d in differences) for index in range(len(section.groups))]
        many = [f"{group.label} {n}" for group, n in zip(section.groups, changed, strict=True) if n > 1]
        if many:
            notes.append(
                f"Several keys differ from {section.groups[0].label} at once ({', '.join(many)}):"
                " these comparisons cannot say which of them mattered"
            )
    weights = [d.key for d in differences if d.key.startswith("losses.")]
    if weights:
        notes.append(f"The losses are different quantities, as the variants differ in {', '.join(weights)}")
    data = [d.key for d in differences if d.key.startswith("data.") and d.key.removeprefix("data.") not in DATA_UPKEEP]
    if data:
        notes.append(f"The variants differ in {', '.join(data)}: their figures are not measured on the same data")
    return notes


def _record_notes(section: Section) -> list[str]:
    runs, notes = section.runs, []
    if len({run.identity.get("code_digest") for run in runs}) > 1:
        notes.append("The runs were made by different states of the code")
    if len({declared_digest(run.identity) for run in runs}) > 1:
        notes.append("The claims were edited between the runs; those of the newest run are answered")
    repeated = [group.label for group in section.groups if len(group.runs) > len(group.seeds)]
    if repeated:
        notes.append(
            f"Some seeds ran more than once ({', '.join(repeated)}): every run is counted, and a seed enters a pair"
            " as the mean over its runs"
        )
    notes += [
        f"Crashed: {run.run_id}: {printable(run.status['error'])}"
        for run in runs
        if run.state == "failed" and run.status.get("error")
    ]
    return notes + [f"Not readable in {run.run_id}: {'; '.join(run.problems)}" for run in runs if run.problems]


def _changes(difference: ConfigDifference, index: int) -> bool:
    """Does the group differ from the first one in this key, and not only by upkeep?"""
    setter = difference.setters[index]
    return difference.values[index] != difference.values[0] and not (setter and setter.kind == "upkeep")


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
