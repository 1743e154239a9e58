"""Which checkpoint a rerun begins with: ``last``, ``best``, ``healthy``, a step, the name of a folder, or a file."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstab.checkpoint import read_checkpoint, read_manifest
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError
from hpcstab.rundir import RunDir, read_json

_NAME = re.compile(r"step_(\d{8,})(_FIXED)?")
_STEP = re.compile(r"\d+")
WORDS = ("healthy", "last", "best")


@dataclass(frozen=True)
class Source:
    """A checkpoint of the parent that passed verification.

    Attributes:
        refused: why newer ones were not taken.
    """

    folder: Path
    state: dict[str, Any]
    manifest: Mapping[str, Any]
    refused: tuple[str, ...] = ()

    @property
    def step(self) -> int:
        return int(self.manifest["step"])


def own_checkpoint(parent: RunDir, wanted: str) -> Source | None:
    """The parent's checkpoint that ``wanted`` means; None where it means none of its own, but a file.

    Raises:
        CheckpointError: there is no such checkpoint, or none that passes verification.
    """
    if wanted in WORDS:
        return _by_word(parent, wanted)
    name = parent.checkpoint(int(wanted)).name if _STEP.fullmatch(wanted) else wanted.rstrip("/")
    folder = Path(name)
    if _NAME.fullmatch(name):
        folder = parent.checkpoints / name
    is_own = folder.parent.resolve() == parent.checkpoints.resolve()
    if is_own and folder.is_dir():
        return _read(folder)
    if is_own or not folder.exists():
        file = "" if is_own else " and no file"
        raise CheckpointError(
            f"--from {wanted}: {parent.run_id} has no such checkpoint{file}; {_those_there(parent)}."
            f" Words for them are {', '.join(WORDS)}",
            exit_code=EXIT_WRONG_REQUEST,
        )
    return None


def checkpoints_of(run: RunDir) -> list[Path]:
    """Newest first; of one step the repaired one before the one that it was made from."""
    found = [(match, path) for path in run.checkpoints.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    return [path for _, path in sorted(found, key=lambda entry: (int(entry[0][1]), entry[1].name), reverse=True)]


def _by_word(parent: RunDir, word: str) -> Source:
    if not checkpoints_of(parent):
        raise CheckpointError(
            f"{parent.run_id} has no checkpoint; --from FILE begins with weights, `hpcstab submit` from step 0"
        )
    if word == "best":
        return _best(parent)
    if word == "last":
        return _newest(parent, lambda manifest: True, "")
    return _newest(parent, lambda manifest: bool(manifest["healthy"]), "healthy ")


def _newest(parent: RunDir, counts: Callable[[Mapping[str, Any]], bool], kind: str) -> Source:
    refused: list[str] = []
    sick = 0
    for folder in checkpoints_of(parent):
        try:
            if counts(read_manifest(folder)):
                found = _read(folder)
                return Source(found.folder, found.state, found.manifest, tuple(refused))
            sick += 1
        except CheckpointError as error:
            refused.append(str(error))
    reasons = [f"{sick} labelled sick"] if sick else []
    reasons += [f"{len(refused)} damaged, the newest: {refused[0]}"] if refused else []
    remedy = "; --from last takes a sick one through the doctor" if sick else ""
    raise CheckpointError(f"{parent.run_id} has no {kind}checkpoint that passes: {', '.join(reasons)}{remedy}")


def _best(parent: RunDir) -> Source:
    """The healthy one with the best evaluation, as the trainer's index has it."""
    name = (read_json(parent.checkpoints / "index.json") or {}).get("best")
    if name is None:
        raise CheckpointError(
            f"{parent.run_id}: no checkpoint has an evaluation of its step, so there is no best; {_those_there(parent)}"
        )
    return _read(parent.checkpoints / name)


def _read(folder: Path) -> Source:
    state, manifest = read_checkpoint(folder, "cpu")
    return Source(folder, state, manifest)


def _those_there(parent: RunDir) -> str:
    names = [path.name for path in checkpoints_of(parent)]
    steps = [name.removeprefix("step_").lstrip("0") or "0" if "FIXED" not in name else name for name in names]
    return f"there are: {', '.join(steps)}" if steps else "there is none at all"
