"""The checkpoints of a run: ``checkpoints/step_00000100/`` and ``checkpoints/index.json``.

The two newest that were written are kept, so that one damaged file never costs the run, and the two newest that the
run's own cadence asked for, which do not depend on when a signal came. A checkpoint
whose state is not finite is labelled sick: it is kept to be looked at and is never resumed from.
"""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcstab.checkpoint.format import read_checkpoint, read_manifest, remove_asides, write_checkpoint
from hpcstab.errors import CheckpointError
from hpcstab.rundir import RunDir, write_json

NUM_KEPT = 2


@dataclass(frozen=True)
class Restored:
    """What a resume found: the newest checkpoint that passes, and why newer ones did not."""

    folder: Path
    state: dict[str, Any]
    manifest: dict[str, Any]
    refused: tuple[str, ...]


class CheckpointStore:
    """Reads and writes the checkpoints of one run."""

    def __init__(self, run: RunDir) -> None:
        self._run = run

    def save(self, step: int, state: Mapping[str, Any], facts: Mapping[str, Any], *, healthy: bool) -> Path:
        """Write the checkpoint of a step and forget older healthy ones beyond the two newest.

        Raises:
            CheckpointError: it cannot be written; the ones before it are untouched.
        """
        folder = self._run.checkpoint(step)
        write_checkpoint(folder, state, {"step": step, "healthy": healthy, **facts})
        write_json(self._run.checkpoints / "index.json", {"last": folder.name})
        if healthy:
            self._forget_old()
        return folder

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps: the training went back, and a resume must not go on from them."""
        for folder in self._newest_first():
            if folder.name > self._run.checkpoint(step).name:
                shutil.rmtree(folder, ignore_errors=True)

    def _forget_old(self) -> None:
        healthy = self._healthy()
        kept = healthy[:NUM_KEPT] + [folder for folder in healthy if _is_scheduled(folder)][:NUM_KEPT]
        for old in healthy:
            if old not in kept:
                shutil.rmtree(old, ignore_errors=True)

    def newest(self, device: torch.device | str, scheduled_until: int | None = None) -> Restored | None:
        """The newest healthy checkpoint that passes verification; None where there never was one.

        Args:
            scheduled_until: of the run's own cadence alone, and of this step at most.

        Raises:
            CheckpointError: there are checkpoints and none passes; nothing is deleted.
        """
        remove_asides(self._run.checkpoints)
        refused: list[str] = []
        for folder in self._newest_first():
            try:
                if not read_manifest(folder)["healthy"] or not self._counts(folder, scheduled_until):
                    continue
                state, manifest = read_checkpoint(folder, device)
            except CheckpointError as error:
                refused.append(str(error))
                continue
            return Restored(folder, state, manifest, tuple(refused))
        if refused:
            raise CheckpointError(f"none of {len(refused)} checkpoints passes verification, the newest: {refused[0]}")
        return None

    def _counts(self, folder: Path, scheduled_until: int | None) -> bool:
        if scheduled_until is None:
            return True
        return _is_scheduled(folder) and folder.name <= self._run.checkpoint(scheduled_until).name

    def _healthy(self) -> list[Path]:
        found = []
        for folder in self._newest_first():
            try:
                if read_manifest(folder)["healthy"]:
                    found.append(folder)
            except CheckpointError:
                continue  # damaged: it protects nothing, and whoever looks for the cause still finds it
        return found

    def _newest_first(self) -> list[Path]:
        return sorted(self._run.checkpoints.glob("step_[0-9]*[0-9]"), reverse=True)


def _is_scheduled(folder: Path) -> bool:
    return bool(read_manifest(folder).get("scheduled", True))
