"""All runs of a root with their size and their health, 200 of them in less than a second: nothing is read whole."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.housekeeping.sizes import PARTS, Part, sizes_of
from hpcstab.rundir import RunDir, find_runs, read_json
from hpcstab.state.checkpoints import checkpoints_of
from hpcstab.state.evidence import OPEN, State
from hpcstab.state.rule import WrittenDown

QUESTIONS = ("finite", "learned", "unmasked")


@dataclass(frozen=True)
class RunSize:
    """One run. ``answers``: the judgement of its trainer, unknown until it has ended; ``healthy_step``: of its newest
    checkpoint that is labelled healthy."""

    run: RunDir
    state: State
    detail: str | None
    answers: Mapping[str, str]
    healthy_step: int | None
    num_sick: int
    sizes: Mapping[Part, int]

    @property
    def is_open(self) -> bool:
        """Not known to have ended."""
        return self.state in OPEN

    @property
    def judged(self) -> str:
        """``stable``, or the first answer that is no, or else unknown."""
        for answer, words in (("no", "not {}"), ("unknown", "{}?")):
            found = [question for question in QUESTIONS if self.answers[question] == answer]
            if found:
                return words.format(found[0])
        return "stable"

    @property
    def total(self) -> int:
        return sum(self.sizes.values())

    def as_json(self) -> dict[str, Any]:
        """For programs; sizes in bytes."""
        return {
            "run_id": self.run.run_id,
            "state": self.state,
            **self.answers,
            "healthy_step": self.healthy_step,
            "num_sick_checkpoints": self.num_sick,
            "num_bytes": {**self.sizes, "total": self.total},
        }


def sizes_under(root: Path, names: Sequence[str] = ()) -> list[RunSize]:
    """The runs whose id holds one of ``names``, all where none is given."""
    written, now = WrittenDown.under(root), time.time()
    runs = [run for run in find_runs(root) if not names or any(name in run.run_id for name in names)]
    return [size_of(run, written, now) for run in runs]


def size_of(run: RunDir, written: WrittenDown, now: float) -> RunSize:
    """One run, looked at now."""
    state = written.state_of(run, now)
    checkpoints = checkpoints_of(run)
    healthy = [each.step for each in checkpoints if each.is_healthy]
    return RunSize(
        run=run,
        state=state.state,
        detail=state.detail,
        answers=_answers(run),
        healthy_step=max(healthy, default=None),
        num_sick=len(checkpoints) - len(healthy),
        sizes=sizes_of(run),
    )


def totals(rows: Sequence[RunSize]) -> dict[Part, int]:
    """Bytes a part over all runs."""
    return {part: sum(row.sizes[part] for row in rows) for part in PARTS}


def _answers(run: RunDir) -> dict[str, str]:
    try:
        judgement = (read_json(run.status_json) or {}).get("judgement") or {}
    except RunError:
        judgement = {}
    return {question: str((judgement.get(question) or {}).get("answer", "unknown")) for question in QUESTIONS}
