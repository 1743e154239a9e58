"""What ``hpcstab why`` says, before it is words: an answer first, then its evidence, then what to type."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

from hpcstab.explain.case import Command
from hpcstab.explain.causes import Cause


@dataclass(frozen=True)
class Section:
    """A label and its lines; of a table the first line is its header."""

    label: str
    lines: tuple[str, ...]


@dataclass(frozen=True)
class Story:
    """``causes``: the first is the answer, the second the next best. ``figures``: the same for programs."""

    kind: Literal["run", "log", "checkpoint"]
    headline: str
    causes: tuple[Cause, ...]
    sections: tuple[Section, ...]
    commands: tuple[Command, ...]
    figures: Mapping[str, Any]

    @property
    def exit_code(self) -> int:
        """0 nothing is wrong, 1 bad news, 3 what is there does not tell."""
        return self.causes[0].about.exit_code

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {
            "kind": self.kind,
            "headline": self.headline,
            "exit_code": self.exit_code,
            "causes": [cause.as_json() for cause in self.causes],
            "next": [vars(command) for command in self.commands],
            **self.figures,
        }
