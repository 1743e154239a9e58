"""What a careful reader must know before using the verdict."""

from __future__ import annotations

from collections.abc import Sequence

from hpcstab.report.compare import ALPHA, Pairing, failure_rate_bound, smallest_p
from hpcstab.report.differences import ConfigDifference, config_differences, declared_flaws
from hpcstab.report.lineage import lineage_notes
from hpcstab.report.ranks import rank_notes
from hpcstab.report.record import DATA_UPKEEP
from hpcstab.report.sections import Section, declared_digest
from hpcstab.report.words import printable


def certainty_notes(section: Section, pairings: Sequence[Pairing]) -> list[str]:
    """One sentence each."""
    notes = [
        *lineage_notes(section),
        *_survival_notes(section),
        *_pairing_notes(pairings),
        *_fairness_notes(section),
        *declared_flaws(section),
        *rank_notes(section),
        *_record_notes(section),
    ]
    return [f"{note}." for note in notes]


def _survival_notes(section: Section) -> list[str]:
    """What n runs without a failure still allow."""
    whole: dict[int, list[str]] = {}
    for group in section.groups:
        if len(group.finite) == len(group.runs) and not group.is_rerun:
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
    same = {*DATA_UPKEEP, *section.compare.training_only}
    data = [d.key for d in differences if d.key.startswith("data.") and d.key.removeprefix("data.") not in same]
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
