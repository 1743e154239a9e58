"""What the doctor says: findings about a checkpoint, and what a repair changed."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any, Literal

from hpcstab.errors import EXIT_BAD_NEWS, EXIT_NO_ANSWER, EXIT_OK

Part = Literal["file", "batchnorm", "weights", "ema", "optimizer", "scaler", "other"]
"""What a tensor is for, told by the structure around it. ``other``: all that no training goes on from."""
Severity = Literal["note", "sick", "unsafe", "unreadable"]
Verdict = Literal["healthy", "sick", "unsafe", "unreadable"]
How = Literal["restored", "reestimated", "averaged anew", "reset", "dropped"]
_EXIT_CODES: dict[Verdict, int] = {
    "healthy": EXIT_OK,
    "sick": EXIT_BAD_NEWS,
    "unsafe": EXIT_BAD_NEWS,
    "unreadable": EXIT_NO_ANSWER,
}


@dataclass(frozen=True)
class Finding:
    """One thing that is wrong, or worth a word (``note``: it does not make a checkpoint sick).

    ``code`` is a short stable word (``nan``, ``inf``, ``negative_variance``, ``damaged``, ...), ``name`` the dotted
    path of the tensor in the file, empty where it is about the whole file, ``text`` says it in plain words.
    ``first_index``: of the first non-finite value, in the tensor's own shape.
    """

    code: str
    severity: Severity
    part: Part
    name: str
    text: str
    num_values: int = 0
    num_nan: int = 0
    num_inf: int = 0
    first_index: tuple[int, ...] | None = None


@dataclass(frozen=True)
class Diagnosis:
    """What was found in one checkpoint: a file, or a folder with a manifest.

    ``kind`` says which format it is, in words. ``step``: where the file tells it. ``num_values`` are the floating-point
    values that were looked at.
    """

    path: Path
    kind: str
    num_bytes: int
    num_tensors: int
    num_values: int
    step: int | None
    findings: tuple[Finding, ...]

    @property
    def verdict(self) -> Verdict:
        """The worst of its findings; notes alone leave it healthy."""
        found = {finding.severity for finding in self.findings}
        for verdict in ("unsafe", "unreadable", "sick"):
            if verdict in found:
                return verdict
        return "healthy"

    @property
    def exit_code(self) -> int:
        return _EXIT_CODES[self.verdict]

    @property
    def sick(self) -> tuple[Finding, ...]:
        """The findings that make it sick, without notes."""
        return tuple(finding for finding in self.findings if finding.severity == "sick")

    def as_json(self) -> dict[str, Any]:
        return {
            **asdict(self),
            "path": str(self.path),
            "verdict": self.verdict,
        }


@dataclass(frozen=True)
class Change:
    """What a repair did to one tensor (``dropped``: to the optimizer state of one parameter), and what that means."""

    name: str
    part: Part
    how: How
    num_values: int
    meaning: str


@dataclass(frozen=True)
class Repair:
    """What a repair came to: ``out`` is the written file or folder, None where none was written; ``after`` its scan.

    ``left``: findings of the source that nothing could be done about, each with what to do in ``advice``.
    """

    source: Diagnosis
    out: Path | None
    changes: tuple[Change, ...]
    left: tuple[Finding, ...]
    advice: tuple[str, ...]
    after: Diagnosis | None

    @property
    def exit_code(self) -> int:
        """0 where the written file, or a source that needed none, is healthy; 3 unreadable; else 1."""
        if self.source.verdict in ("healthy", "unreadable"):
            return self.source.exit_code
        return EXIT_OK if self.after is not None and self.after.verdict == "healthy" else EXIT_BAD_NEWS

    def as_json(self) -> dict[str, Any]:
        return {
            "source": self.source.as_json(),
            "out": None if self.out is None else str(self.out),
            "changes": [asdict(change) for change in self.changes],
            "left": [asdict(finding) for finding in self.left],
            "advice": list(self.advice),
            "after": None if self.after is None else self.after.as_json(),
        }
