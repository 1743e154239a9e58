"""What a reader must know of runs that several processes trained together."""

from __future__ import annotations

from hpcstab.report.facts import machine_of
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Section
from hpcstab.report.words import printable


def rank_notes(section: Section) -> list[str]:
    """How batches were shared, whether that changes the training, and where runs differ in it."""
    labels: dict[int, list[str]] = {}
    for run in section.runs:
        if run.label not in labels.setdefault(_num_ranks(run), []):
            labels[_num_ranks(run)].append(run.label)
    several = {count: names for count, names in labels.items() if count > 1}
    notes = [_shares(count, names, section) for count, names in several.items()]
    if len(labels) > 1:
        counts = "; ".join(f"{count} in {', '.join(names)}" for count, names in sorted(labels.items()))
        notes.append(f"The runs differ in their number of ranks ({counts})")
    return notes


def _num_ranks(run: LoadedRun) -> int:
    return int(machine_of(run).get("num_ranks", 1))


def _shares(count: int, labels: list[str], section: Section) -> str:
    started = [machine_of(run) for run in section.runs if _num_ranks(run) == count]
    sizes = sorted({(start["batch_size"], start["batch_size_per_rank"]) for start in started})
    shares = ", ".join(f"{own} of a batch's {whole} samples" for whole, own in sizes)
    joined = list(dict.fromkeys(name for start in started for name in start.get("joins_samples", [])))
    effect = (
        f"{printable(' and '.join(joined))} know no others, so that another number of ranks is another training"
        if joined
        else "the loss is a mean over samples, so that their number changes rounding alone"
    )
    return f"{', '.join(labels)}: {count} ranks, each with {shares}; {effect}"
