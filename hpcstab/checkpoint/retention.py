"""Which checkpoints of a run are kept: by health, not by age."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstab.checkpoint.format import read_manifest
from hpcstab.errors import CheckpointError

NUM_HEALTHY = 3
"""One may be damaged, and the newest may carry a trouble already that is not a NaN yet: the third is from before it."""


@dataclass(frozen=True)
class Known:
    """A checkpoint whose manifest is sound.

    ``scheduled``: of the run's own cadence, and not where a signal came; ``score``: the primary metric of the
    evaluation at its step, larger is better; None where there was none.
    """

    folder: Path
    healthy: bool
    scheduled: bool
    score: float | None


def known_checkpoints(folder: Path) -> list[Known]:
    """The checkpoints in a run's folder, the newest first; a damaged one is none, and nobody touches it."""
    found = []
    for path in newest_first(folder):
        try:
            manifest = read_manifest(path)
        except CheckpointError:
            continue
        scheduled = bool(manifest.get("scheduled", True))
        found.append(Known(path, bool(manifest.get("healthy")), scheduled, _score(manifest.get("evaluation"))))
    return found


def newest_first(folder: Path) -> list[Path]:
    """The folders of checkpoints, damaged ones too."""
    return sorted(folder.glob("step_[0-9]*[0-9]"), reverse=True)


def best_of(checkpoints: Sequence[Known]) -> Known | None:
    """The healthy one with the best evaluation, of equals the earliest."""
    scored = [(known.score, known) for known in checkpoints if known.healthy and known.score is not None]
    return max(reversed(scored), key=lambda pair: pair[0])[1] if scored else None


def kept_of(checkpoints: Sequence[Known]) -> list[Known]:
    """Of the newest first: the last, the best, the newest healthy ones, and the newest sick one as evidence.

    Of the healthy ones those of the cadence count apart: what a rollback finds must not depend on when a signal came.
    That is three to five where the cadence alone saves, and never more than eight.
    """
    healthy = [known for known in checkpoints if known.healthy]
    sick = [known for known in checkpoints if not known.healthy]
    scheduled = [known for known in healthy if known.scheduled]
    kept = [*checkpoints[:1], *healthy[:NUM_HEALTHY], *scheduled[:NUM_HEALTHY], *sick[:1]]
    best = best_of(checkpoints)
    return [known for known in checkpoints if known in kept or known == best]


def index_of(checkpoints: Sequence[Known]) -> dict[str, Any]:
    """``checkpoints/index.json``: names of the last, the best (or null) and the healthy ones, the newest first."""
    best = best_of(checkpoints)
    return {
        "last": checkpoints[0].folder.name if checkpoints else None,
        "best": best.folder.name if best else None,
        "healthy": [known.folder.name for known in checkpoints if known.healthy],
    }


def _score(evaluation: Any) -> float | None:
    if not isinstance(evaluation, dict):
        return None
    return float(evaluation["value"]) * (1.0 if evaluation["direction"] == "higher" else -1.0)
