"""The story of a checkpoint: what the doctor finds in it, and where it came from."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

from hpcstab.explain.ask import Asked
from hpcstab.explain.case import Command
from hpcstab.explain.causes import Cause, CauseName, Line
from hpcstab.explain.story import Section, Story
from hpcstab.units import size

_MAX_FINDINGS = 5


def story_of_checkpoint(path: Path, asked: Asked, of_run: Story | None) -> Story:
    """``asked``: the doctor, about this one; ``of_run``: the story of the run that wrote it, which then is told too."""
    found = asked.answer
    if found is None:
        causes: tuple[Cause, ...] = (Cause("unknown", "certain", f"the doctor gave no answer: {asked.reason}"),)
        sections: tuple[Section, ...] = ()
    else:
        causes = (_cause(found, path),)
        sections = (Section("doctor", tuple(_findings(found))),) if of_run else ()
    figures: dict[str, Any] = {"path": str(path), "diagnosis": found}
    if of_run is None:
        return Story("checkpoint", _headline(path, found), causes, sections, _commands(path, causes[0]), figures)
    told = (Section("checkpoint", (_headline(path, found),)), *sections)
    return replace(of_run, sections=(*told, *of_run.sections), figures={**of_run.figures, **figures})


def _headline(path: Path, found: Mapping[str, Any] | None) -> str:
    if found is None:
        return str(path)
    step = f", step {found['step']}" if found.get("step") is not None else ""
    return (
        f"{path}: {found['verdict']}, {found['kind']}{step}, {found['num_tensors']} tensors, {size(found['num_bytes'])}"
    )


def _cause(found: Mapping[str, Any], path: Path) -> Cause:
    wrong = _wrong(found)
    lines = tuple(Line(path.name, text) for text in _findings(found))
    if found["verdict"] == "healthy":
        return Cause("checkpoint_healthy", "certain", f"{found['num_values']:,} values, nothing wrong with them")
    return Cause(_name(found["verdict"], wrong), "certain", _text(wrong[0]), lines)


def _name(verdict: str, wrong: list[Mapping[str, Any]]) -> CauseName:
    if verdict in ("unsafe", "unreadable") or any(finding["part"] == "file" for finding in wrong):
        return "checkpoint_unusable"
    return "batchnorm_poisoned" if {finding["part"] for finding in wrong} == {"batchnorm"} else "nonfinite_operation"


def _findings(found: Mapping[str, Any]) -> list[str]:
    wrong = _wrong(found)
    more = len(wrong) - _MAX_FINDINGS
    return [*map(_text, wrong[:_MAX_FINDINGS]), *([f"and {more} more"] if more > 0 else [])]


def _wrong(found: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    return [finding for finding in found["findings"] if finding["severity"] != "note"]


def _text(finding: Mapping[str, Any]) -> str:
    name = f"{finding['name']}: " if finding.get("name") else ""
    return f"{name}{finding['text']}"


def _commands(path: Path, cause: Cause) -> tuple[Command, ...]:
    name = shlex.quote(str(path))
    if cause.name == "checkpoint_healthy":
        return ()
    if cause.name == "checkpoint_unusable":
        return (Command(f"hpcstab doctor {shlex.quote(str(path.parent))}", "whether one beside it is whole"),)
    why = "writes a repaired copy and says what that means; weights are restored only with --against a healthy sibling"
    return (Command(f"hpcstab doctor {name} --fix", why),)
