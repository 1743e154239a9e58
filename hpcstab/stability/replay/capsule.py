"""A capsule: all that is needed to run a failing step again exactly, in the format of a checkpoint.

capsules/step_00000031/state.pt        network, buffers, optimizer, batch, random state: bitwise those of that step
capsules/step_00000031/manifest.json   which step of which run, sample ids, model, config, what the gate saw
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

CAPSULE_VERSION = 1
MAX_CAPSULES = 8
"""So many a run: a run that fails in every step must not fill the disk."""
_PARTS = ("network", "optimizer", "batch", "random")


@dataclass(frozen=True)
class Capsule:
    """A failing step, complete: a copy of the folder replays anywhere where the model can be imported.

    ``state``: network, all buffers (also those that no checkpoint holds), optimizer, batch, random state, and where
    there are any the loss scale and the moving average. ``facts``: step, epoch, update, ids, rank, reason, figures,
    model, config, seed, and what else was known.
    """

    folder: Path
    state: Mapping[str, Any]
    facts: Mapping[str, Any]


def write_capsule(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> Path:
    """Write a capsule; ``state`` has at least network, optimizer, batch and random state.

    Raises:
        CheckpointError: it cannot be written.
    """
    write_checkpoint(folder, state, {"capsule_version": CAPSULE_VERSION, **facts})
    return folder


def read_capsule(folder: Path, device: torch.device | str = "cpu") -> Capsule:
    """Read a capsule, verified byte for byte.

    Raises:
        CheckpointError: it is no capsule, of another version, damaged, or a file is missing.
    """
    if not folder.is_dir():
        raise CheckpointError(
            f"{folder}: there is no such capsule; `ls RUN/capsules` shows those of a run",
            exit_code=EXIT_WRONG_REQUEST,
        )
    state, facts = read_checkpoint(folder, device)
    version = facts.get("capsule_version")
    if version is None:
        raise CheckpointError(f"{folder}: is a checkpoint, not a capsule; capsules lie in RUN/capsules")
    if version != CAPSULE_VERSION:
        raise CheckpointError(
            f"{folder}: is a capsule of version {version}; this hpcstab reads {CAPSULE_VERSION}, use its own"
        )
    missing = [part for part in _PARTS if part not in state]
    if missing:
        raise CheckpointError(f"{folder}: has no {missing[0]}; it was not written by hpcstab")
    return Capsule(folder, state, facts)
