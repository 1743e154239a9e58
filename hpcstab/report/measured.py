"""How it was measured: everything that is needed to measure it again, or to doubt it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from hpcstab.report.differences import show_value
from hpcstab.report.facts import machine_of, samples_seen
from hpcstab.report.outcome import RISING_SHARE
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Group, Section
from hpcstab.report.words import DAGGER, printable, unit_of


def how_measured(section: Section) -> list[tuple[str, str]]:
    """(what, answer) pairs."""
    runs = section.runs
    compare = section.compare
    levels = ", then ".join(level.replace("_", " ") for level in compare.hierarchy)
    return [
        ("scale", f"{section.scale}; durations inside the training x {_distinct(runs, _duration_factor)}"),
        ("horizon", f"{section.horizon:,} steps (declared {compare.horizon_steps:,}; planned {_planned(section)})"),
        ("primary metric", f"{compare.primary}: {printable(section.primary['about'])}"),
        ("decided by", f"{levels}; margin {compare.margin:g} {unit_of(section.primary)}".rstrip()),
        ("declared", f"sha256 {section.declaration} over compare, failure conditions and claims"),
        ("campaign", _distinct(runs, lambda run: run.identity.get("campaign") or "none (train)")),
        ("seeds", "; ".join(f"{group.label} {', '.join(map(str, group.seeds))}" for group in section.groups)),
        ("samples seen", "; ".join(f"{group.label} {_samples(group, section)}" for group in section.groups)),
        ("data", _distinct(runs, _data_text)),
        ("device", _distinct(runs, _machine_text)),
        ("code", _distinct(runs, _code_text)),
        ("packages", _distinct(runs, _packages_text)),
        ("signatures", "; ".join(f"{group.label} {_distinct(group.runs, _signature)}" for group in section.groups)),
    ]


def definitions(section: Section) -> list[str]:
    """What the words and figures of the tables mean."""
    budget = _distinct(section.runs, _budget)
    needed = f"{section.compare.margin * RISING_SHARE:g} {unit_of(section.primary)}".rstrip()
    return [
        f"Diverged: {budget} steps in a row with a non-finite loss, parameters found non-finite, or "
        "an evaluation without one valid batch. Every run is counted, whatever became of it.",
        "A value at the horizon is the last evaluation at or before it, on held-out data. A run that died has none: "
        f"what it scored before its death stands under best, with {DAGGER}. An evaluation with invalid batches counts "
        "as NaN.",
        f"Still rising: the last evaluation is the best, by more than {needed} "
        "(a quarter of the margin) above all of the first two thirds of the run.",
        "Several values stand in the order of the seeds; x [y, z] is median [smallest, largest].",
        "P(beats): share of paired seeds that are won, ties one half, under the declared hierarchy; p: two-sided exact "
        "sign test. The differences where both stayed finite are a contrast among survivors, not an effect of the fix.",
        "Learned: better than the best floor by the margin at the last evaluation, and every module's gradient and "
        "update above zero. Stable: finite, learned and unmasked.",
    ]


def _distinct(runs: Sequence[LoadedRun], tell: Callable[[LoadedRun], Any]) -> str:
    """The answers of all runs: one where they agree, each with its count where they do not."""
    counts: dict[str, int] = {}
    for run in runs:
        answer = printable(tell(run))
        counts[answer] = counts.get(answer, 0) + 1
    if len(counts) == 1:
        return next(iter(counts))
    return "; ".join(f"{answer} ({count} runs)" for answer, count in counts.items())


def _planned(section: Section) -> str:
    steps = {group.label: {run.planned_steps for run in group.runs if run.planned_steps} for group in section.groups}
    lengths = {length for found in steps.values() for length in found}
    if len(lengths) == 1:
        return f"{lengths.pop():,} in all variants"
    return ", ".join(f"{label} {' or '.join(f'{n:,}' for n in sorted(found)) or '?'}" for label, found in steps.items())


def _samples(group: Group, section: Section) -> str:
    counts = [samples_seen(run, section.horizon) for run in group.runs]
    known = sorted({count for count in counts if count is not None})
    if not known:
        return "?"
    return f"{known[0]:,}" if len(known) == 1 else f"{known[0]:,} to {known[-1]:,}"


def _duration_factor(run: LoadedRun) -> str:
    return show_value(run.config.get("trainer", {}).get("duration_factor", "?"))


def _data_text(run: LoadedRun) -> str:
    facts = run.task.get("data", {})
    return ", ".join(f"{name.replace('_', ' ')} {value}" for name, value in facts.items()) or "no facts recorded"


def _machine_text(run: LoadedRun) -> str:
    machine = machine_of(run)
    if not machine:
        return "none, the training never began"
    threads = machine.get("num_threads", "?")
    return f"{machine.get('device', '?')} ({machine.get('device_name', '?')}), threads {threads}"


def _code_text(run: LoadedRun) -> str:
    identity = run.identity
    digest = str(identity.get("code_digest") or "?")[:12]
    commit = str(identity.get("commit") or "")[:12]
    dirty = " with uncommitted changes (diff in run.json)" if identity.get("dirty_diff") else ""
    return f"sha256 {digest}, {f'commit {commit}{dirty}' if commit else 'no commit'}"


def _packages_text(run: LoadedRun) -> str:
    packages = run.identity.get("packages") or {}
    return ", ".join(f"{name} {version}" for name, version in packages.items() if version) or "unknown"


def _signature(run: LoadedRun) -> str:
    return str(run.identity.get("signature") or "?")[:8]


def _budget(run: LoadedRun) -> str:
    return show_value(run.config.get("trainer", {}).get("nonfinite_budget", "?"))
