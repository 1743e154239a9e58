"""A diagnosis and a repair as a page for a terminal: what is wrong, how serious it is, the next command."""

from __future__ import annotations

import shlex
import textwrap
from collections.abc import Iterator, Sequence
from itertools import groupby
from pathlib import Path

from hpcstab.doctor.findings import Change, Diagnosis, Finding, Part, Repair

MAX_NAMED = 12
"""So many tensors a part; ``--json`` has all."""
_WIDEST_NAME = 60
_WIDTH = 110
_HEADINGS: dict[Part, str] = {
    "file": "the file",
    "batchnorm": "BatchNorm running statistics: --fix can repair them",
    "weights": "weights: serious, --fix takes them from --against and never makes them up",
    "ema": "moving average of the weights: --fix begins it anew from the weights",
    "optimizer": "optimizer state: --fix drops it, it starts anew",
    "scaler": "loss scaler: --fix resets it",
    "other": "not trained on from here",
}


def diagnosis_text(diagnosis: Diagnosis) -> str:
    """All of a diagnosis, in lines."""
    return "\n".join(_diagnosis_lines(diagnosis))


def repair_text(repair: Repair) -> str:
    """What was changed and what that means, or why nothing was written."""
    return "\n".join(_repair_lines(repair))


def _diagnosis_lines(diagnosis: Diagnosis) -> Iterator[str]:
    yield f"{_headline(diagnosis)}{_facts(diagnosis)}"
    serious = [finding for finding in diagnosis.findings if finding.severity != "note"]
    for part, found in groupby(serious, key=lambda finding: finding.part):
        yield f"  {_HEADINGS[part]}"
        yield from _rows(list(found))
    notes = [finding for finding in diagnosis.findings if finding.severity == "note"]
    if notes:
        yield "  worth a word"
        yield from _rows(notes)
    command = next_command(diagnosis)
    if command:
        yield f"  next: {command}"


def _repair_lines(repair: Repair) -> Iterator[str]:
    if repair.out is None:
        yield from _diagnosis_lines(repair.source)
        if repair.source.verdict != "healthy":
            yield "  nothing was written: a repaired copy has to be healthy throughout"
        yield from _advice(repair)
        return
    yield f"FIXED  {repair.source.path} -> {repair.out}, scanned again: healthy"
    for (how, meaning), found in groupby(
        sorted(repair.changes, key=lambda change: (change.how, change.meaning)),
        key=lambda change: (change.how, change.meaning),
    ):
        yield from _wrapped(f"{how}: {meaning}", 2)
        yield from _change_rows(list(found))
    yield from _advice(repair)
    yield f"  next: {_after_repair(repair)}"


def next_command(diagnosis: Diagnosis) -> str:
    """What to type next; empty where all is well."""
    quoted, beside = shlex.quote(str(diagnosis.path)), shlex.quote(str(diagnosis.path.parent))
    if diagnosis.verdict == "sick":
        if any(finding.part == "weights" for finding in diagnosis.sick):
            return f"hpcstab doctor {beside}, which shows a healthy one; hpcstab doctor {quoted} --fix --against THAT"
        return f"hpcstab doctor {quoted} --fix"
    if diagnosis.verdict == "unreadable":
        return f"hpcstab doctor {beside}, which shows whether another one there is healthy"
    if diagnosis.verdict == "unsafe":
        return "do not load it; get it again from a source that you trust"
    return ""


def _headline(diagnosis: Diagnosis) -> str:
    verdict = diagnosis.verdict
    return f"{verdict if verdict == 'healthy' else verdict.upper()}  {diagnosis.path}"


def _facts(diagnosis: Diagnosis) -> str:
    facts = [diagnosis.kind, f"{diagnosis.num_bytes / 1e6:.1f} MB"]
    if diagnosis.num_tensors:
        facts.append(f"{diagnosis.num_tensors} tensors")
    if diagnosis.step is not None:
        facts.append(f"step {diagnosis.step}")
    return f"  ({', '.join(facts)})"


def _rows(findings: Sequence[Finding]) -> Iterator[str]:
    width = _width([finding.name for finding in findings])
    for finding in findings[:MAX_NAMED]:
        where = f", first at {list(finding.first_index)}" if finding.first_index else ""
        name = f"{finding.name:<{width}}" if finding.name else ""
        yield from _wrapped(f"{name}{finding.text}{where}", 4)
    if len(findings) > MAX_NAMED:
        yield f"    and {len(findings) - MAX_NAMED} more (--json names all)"


def _change_rows(changes: Sequence[Change]) -> Iterator[str]:
    width = _width([change.name for change in changes])
    for change in changes[:MAX_NAMED]:
        yield f"    {change.name:<{width}}{change.num_values} value{'s' * (change.num_values != 1)}"
    if len(changes) > MAX_NAMED:
        yield f"    and {len(changes) - MAX_NAMED} more (--json names all)"


def _advice(repair: Repair) -> Iterator[str]:
    for advice in repair.advice:
        yield from _wrapped(advice, 2)


def _wrapped(text: str, indent: int) -> list[str]:
    """Lines of a readable width; names and commands are never cut."""
    return textwrap.wrap(
        text,
        _WIDTH,
        initial_indent=" " * indent,
        subsequent_indent=" " * (indent + 2),
        break_long_words=False,
        break_on_hyphens=False,
        drop_whitespace=True,
    )


def _width(names: Sequence[str]) -> int:
    longest = max(len(name) for name in names[:MAX_NAMED])
    return min(longest, _WIDEST_NAME) + 2 if longest else 0


def _after_repair(repair: Repair) -> str:
    assert repair.out is not None
    run = repair.out.resolve().parent.parent
    if repair.out.is_dir() and (run / "run.json").is_file():
        return f"hpcstab rerun {shlex.quote(_shortest(run))} --from {repair.out.name}"
    return f"load {repair.out} in place of {repair.source.path.name}"


def _shortest(run: Path) -> str:
    try:
        return str(run.relative_to(Path.cwd()))
    except ValueError:
        return str(run)
