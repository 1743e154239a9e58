"""The checkpoints of a run: ``checkpoints/step_00000100/`` and ``checkpoints/index.json``.

A checkpoint whose state is not finite is labelled sick: it is kept to be looked at, is never resumed from, and never
takes the place of a healthy one. What else is kept stands in retention.py.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcstab.checkpoint.format import discard, read_checkpoint, read_manifest, remove_asides, write_checkpoint
from hpcstab.checkpoint.retention import Known, index_of, kept_of, known_checkpoints, newest_first
from hpcstab.errors import CheckpointError
from hpcstab.rundir import RunDir, write_json


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
        """Write the checkpoint of a step, then the index, then remove what is not kept any more.

        Args:
            facts: among them what it is kept by: ``scheduled``, ``evaluation`` (metric, direction and value; or None).

        Raises:
            CheckpointError: it cannot be written; the ones before it are untouched.
            RunError: it is written, and the index is not.
        """
        folder = self._run.checkpoint(step)
        if not healthy and folder in [known.folder for known in self._known() if known.healthy]:
            raise CheckpointError(f"{folder}: is healthy and stays; the sick state of the same step is not written")
        write_checkpoint(folder, state, {"step": step, "healthy": healthy, **facts})
        self._tidy()
        return folder

    def clean_up(self) -> None:
        """Remove what a killed writer left aside; for the one who writes next, while nobody writes.

        Raises:
            CheckpointError: a checkpoint that was about to be replaced cannot be brought back.
        """
        remove_asides(self._run.checkpoints)

    def forget_after(self, step: int) -> None:
        """Remove checkpoints of later steps: the training went back, and a resume must not go on from them."""
        for folder in newest_first(self._run.checkpoints):
            if folder.name > self._run.checkpoint(step).name:
                discard(folder)
        self._tidy()

    def has_healthy(self) -> bool:
        """Whether there is something to go on from, as far as manifests tell."""
        return any(known.healthy for known in self._known())

    def newest(self, device: torch.device | str, scheduled_until: int | None = None) -> Restored | None:
        """The newest healthy checkpoint that passes verification; None where there never was one.

        Args:
            scheduled_until: of the run's own cadence alone, and of this step at most.

        Raises:
            CheckpointError: there are checkpoints and none passes; nothing is deleted.
        """
        refused: list[str] = []
        for folder in newest_first(self._run.checkpoints):
            try:
                if not self._counts(folder, scheduled_until):
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
        manifest = read_manifest(folder)
        if not manifest["healthy"] or scheduled_until is None:
            return bool(manifest["healthy"])
        return manifest.get("scheduled", True) and folder.name <= self._run.checkpoint(scheduled_until).name

    def _known(self) -> list[Known]:
        return known_checkpoints(self._run.checkpoints)

    def _tidy(self) -> None:
        known = self._known()
        kept = kept_of(known)
        write_json(self._run.checkpoints / "index.json", index_of(kept))
        for each in known:
            if each not in kept:
                discard(each.folder)
