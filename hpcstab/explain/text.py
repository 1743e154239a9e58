"""A story in words, for a terminal of any width: labels in a column, lines wrapped under themselves."""

from __future__ import annotations

import textwrap
from collections.abc import Iterator

from hpcstab.explain.causes import Cause, Line
from hpcstab.explain.story import Story

_LABEL = 11
_MAX_EVIDENCE = 6
_VERBATIM = ("saved",)
"""Sections that are tables: their lines are not wrapped."""


def story_text(story: Story, width: int = 100) -> str:
    """One screen: the answer, what it rests on, what to type."""
    return "\n".join([story.headline, *_lines(story, width)])


def _lines(story: Story, width: int) -> Iterator[str]:
    first, *others = story.causes
    yield from _labelled("cause", _cause(first), width)
    for other in others[:1]:
        yield from _labelled("or", _cause(other), width)
    for section in story.sections:
        if section.label in _VERBATIM:
            yield from (f"{section.label if not at else '':<{_LABEL}}{line}" for at, line in enumerate(section.lines))
        else:
            yield from _labelled(section.label, section.lines, width)
    yield from _labelled("evidence", _evidence(first, others[:1]), width)
    for at, command in enumerate(story.commands):
        yield f"{'next' if not at else '':<{_LABEL}}{command.line}"
        yield from _labelled("", [f"    {command.why}"], width)


def _cause(cause: Cause) -> list[str]:
    lines = [f"{cause.name} ({cause.confidence}): {cause.reason}"]
    if cause.confidence != "certain":
        lines.append(f"to make sure: {cause.about.confirm}")
    return lines


def _evidence(first: Cause, others: list[Cause]) -> list[str]:
    lines: list[Line] = [line for cause in (first, *others) for line in cause.evidence]
    kept = list(dict.fromkeys(lines))
    shown = [f"{line.source}: {line.text}" for line in kept[:_MAX_EVIDENCE]]
    return [*shown, f"and {len(kept) - _MAX_EVIDENCE} more, with --json"] if len(kept) > _MAX_EVIDENCE else shown


def _labelled(label: str, lines: list[str] | tuple[str, ...], width: int) -> Iterator[str]:
    for at, line in enumerate(lines):
        indent = len(line) - len(line.lstrip())
        yield from textwrap.wrap(
            line.lstrip(),
            width,
            initial_indent=f"{label if not at else '':<{_LABEL}}" + " " * indent,
            subsequent_indent=" " * (_LABEL + 2 + indent),
            break_long_words=False,
            break_on_hyphens=False,
        )
