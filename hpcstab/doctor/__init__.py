"""Reads a checkpoint of anyone's PyTorch training, says what is wrong, repairs what can be repaired.

    diagnosis = diagnose(Path("model.pt"))             # never runs code from the file
    print(diagnosis.verdict, diagnosis.findings)
    repaired = repair(Path("model.pt"))                # writes model_FIXED.pt beside it, never touches the original
    checkpoints_in(Path("runs/m/v/20260101_..."))      # the checkpoints that a path means: of a run, of a folder
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from hpcstab.doctor.findings import Change, Diagnosis, Finding, Repair
from hpcstab.errors import CheckpointError

Reestimate = Callable[[Path, Mapping[str, Any], Sequence[str]], Mapping[str, tuple[Any, Any]]]
"""``(checkpoint folder, network state with the sick statistics reset, layers) -> layer: (mean, variance)``, without those
that could not be estimated. Raises CheckpointError where the model cannot be built here."""


def checkpoints_in(path: Path) -> list[Path]:
    """What ``path`` means: itself, or the checkpoints of a run, of its checkpoints folder, or of any folder.

    Raises:
        CheckpointError: there is no such path, or no checkpoint in the folder (exit code 2).
    """
    raise CheckpointError("not built yet")


def diagnose(path: Path, against: Path | None = None) -> Diagnosis:
    """Look at one checkpoint: a file, or a folder with a manifest. A damaged or unreadable one is a finding, no error.

    Args:
        against: a sibling to compare names, shapes and norms with.

    Raises:
        CheckpointError: there is no such path, or it is a folder of several (exit code 2).
    """
    raise CheckpointError("not built yet")


def repair(
    path: Path,
    out: Path | None = None,
    *,
    against: Path | None = None,
    reestimate: Reestimate | None = None,
) -> Repair:
    """Write a repaired copy of a sick checkpoint; a healthy one needs none and none is written.

    Args:
        out: where to; default ``<name>_FIXED.<ext>`` beside it, for ours the folder ``step_..._FIXED``.
        against: a healthy sibling; tensors are restored from it, weights from it alone.
        reestimate: gives BatchNorm statistics anew where the model is known; :func:`hpcstab.execute.reestimate`.

    Raises:
        CheckpointError: no such path; ``out`` is there already with other content (exit code 2); cannot be written.
    """
    raise CheckpointError("not built yet")


__all__ = ["Change", "Diagnosis", "Finding", "Reestimate", "Repair", "checkpoints_in", "diagnose", "repair"]
