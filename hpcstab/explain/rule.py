"""A rule: which cause it speaks for, how sure it is where it applies, and what it looks at."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from hpcstab.explain.causes import Cause, CauseName, Confidence, Line
from hpcstab.explain.facts import Facts

Seen = tuple[str, list[Line]] | None
"""(the reason in one sentence with its figures, the evidence); None where the rule does not apply."""


@dataclass(frozen=True)
class Rule:
    """``look`` returns what it saw; every rule of a table is tried."""

    cause: CauseName
    confidence: Confidence
    look: Callable[[Facts], Seen]

    def apply(self, facts: Facts) -> Cause | None:
        seen = self.look(facts)
        return Cause(self.cause, self.confidence, seen[0], tuple(seen[1])) if seen else None
