"""Which change mattered: variants that differ from another one of their comparison by a single fix."""

from __future__ import annotations

from dataclasses import dataclass

from hpcstab.report.compare import Pairing, pair
from hpcstab.report.differences import Setter, setter
from hpcstab.report.outcome import was_kept_out, was_nonfinite
from hpcstab.report.sections import Group, Section
from hpcstab.report.tables import Table
from hpcstab.report.words import NOTHING, signed, unit_of


@dataclass(frozen=True)
class SingleChange:
    """A variant and the one that it differs from by ``fix`` alone, which it has (``is_added``) or lacks."""

    group: Group
    reference: Group
    fix: Setter
    is_added: bool


def single_changes(section: Section) -> list[SingleChange]:
    """All of them, by reference; within one, those that end the failure first."""
    groups = [group for group in section.groups if not group.is_rerun]
    found = [change for plain in groups for group in groups if (change := _change_of(group, plain)) is not None]

    def place(change: SingleChange) -> tuple[float, ...]:
        failed = len(change.group.failed) / len(change.group.runs)
        return groups.index(change.reference), failed, -_num(change.group, "stable"), -_num(change.group, "learned")

    return sorted(found, key=place)


def single_change_table(section: Section) -> Table:
    """One row a change: what became of the runs with it, and what that says."""
    columns = ("change", "kind", "failed (unchanged)", "learned", "stable", "what it does alone", "what it is")
    changes = single_changes(section)
    rows = tuple(_row(change, section) for change in changes)
    return Table(columns, rows, tuple(change.group.label for change in changes))


def _change_of(group: Group, reference: Group) -> SingleChange | None:
    """The one fix that a variant has more or less than a plainer one; None where they differ by more."""
    if group.overrides != reference.overrides or _num_parts(group.variant) <= _num_parts(reference.variant):
        return None
    own, others = _fixes(group), _fixes(reference)
    differing = own.keys() ^ others.keys()
    if len(differing) != 1:
        return None
    (name,) = differing
    return SingleChange(group, reference, own.get(name) or others[name], name in own)


def _num_parts(variant: str) -> int:
    return variant.count("+") + variant.count("-")


def _fixes(group: Group) -> dict[str, Setter]:
    return {fix["name"]: setter(fix) for fix in group.runs[0].identity["fixes"]}


def _row(change: SingleChange, section: Section) -> tuple[str, ...]:
    group, reference = change.group, change.reference
    n = len(group.runs)
    text = f"{reference.label} {'with' if change.is_added else 'without'} {change.fix.name}"
    failed = f"{len(group.failed)} of {n} ({len(reference.failed)} of {len(reference.runs)})"
    learned, stable = (f"{_num(group, answer)} of {n}" for answer in ("learned", "stable"))
    return text, change.fix.kind, failed, learned, stable, what_it_does(change, section), change.fix.why


def what_it_does(change: SingleChange, section: Section) -> str:
    """In words: whether the change ends the failure, delays it, brings it, or makes no difference."""
    group, reference = change.group, change.reference
    n = len(group.runs)
    if group.undecided or reference.undecided:
        return "not decided yet"
    if group.failed and all(map(was_kept_out, group.failed)):
        what = "meets the failure all the same;" if reference.failed else "brings a failure;"
        return f"{what} the gate keeps it out of the state"
    if reference.failed and not group.failed:
        return f"ends the failure{', with what it hides' if _hides(group) else ''}, {_learning(group, n)}"
    if not group.failed:
        return _difference(pair(group, reference, section), section)
    if not reference.failed:
        return f"brings a failure in {len(group.failed)} of {n}"
    return _failing(group, pair(group, reference, section))


def _hides(group: Group) -> bool:
    return any(run.answer("unmasked") == "no" for run in group.runs)


def _learning(group: Group, n: int) -> str:
    learned = _num(group, "learned")
    if learned == n:
        return "and it learns"
    return "and it learns nothing" if learned == 0 else f"and it learns in {learned} of {n}"


def _failing(group: Group, pairing: Pairing) -> str:
    """Both fail somewhere: how the failures compare, seed by seed."""
    failed, n = len(group.failed), len(group.runs)
    of_values = any(map(was_nonfinite, group.failed))
    later = "later" if failed == n else "later or not at all"
    parts = [(pairing.wins, later), (pairing.losses, "earlier"), (pairing.ties, "as early")]
    told = ", ".join(f"{words} in {count}" for count, words in parts if count)
    what = "fails all the same" if of_values else "stays finite and fails as declared"
    return f"{what} in {failed} of {n}" + (f": {told}" if told else "")


def _difference(pairing: Pairing, section: Section) -> str:
    """Both stayed finite: the primary metric, beyond the declared margin."""
    told = ", ".join(signed(value, section.decimals) for value in pairing.differences.values())
    figures = f" ({told} {unit_of(section.primary)}".rstrip() + ")" if told else ""
    parts = [(pairing.wins, "better"), (pairing.losses, "worse")]
    words = ", ".join(f"{word} in {count} of {len(pairing.scores)}" for count, word in parts if count)
    if not told:
        return "measured on other data" if pairing.scores else NOTHING
    return (words or "no difference beyond the margin") + figures


def _num(group: Group, answer: str) -> int:
    if answer == "stable":
        return sum(bool(run.judgement["stable"]) for run in group.runs)
    return sum(run.answer(answer) == "yes" for run in group.runs)
