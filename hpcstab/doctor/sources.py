"""Where sound values of a sick tensor can be had from: a sibling, that is another checkpoint of the same training."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from torch import Tensor

from hpcstab.checkpoint import read_manifest
from hpcstab.doctor.contents import TensorFile
from hpcstab.doctor.diagnose import examine
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.parts import Located
from hpcstab.doctor.paths import FIXED, SUFFIXES, checkpoints_in, is_checkpoint_folder
from hpcstab.doctor.siblings import partners
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

MAX_LOOKED_AT = 5
"""So many neighbours are scanned in the search for a healthy one."""


class Sibling:
    """A healthy checkpoint, and which of its tensors are those of a sick one.

    ``name`` is how a change refers to it.
    """

    def __init__(self, examined: Examined, ours: Examined, file: TensorFile) -> None:
        self.examined = examined
        self.name = examined.diagnosis.path.name
        if examined.diagnosis.step is not None and str(examined.diagnosis.step) not in self.name:
            self.name += f" (step {examined.diagnosis.step})"
        self._file = file
        self._partners = partners(ours.layout.tensors, examined.layout.tensors)
        self._sick = {finding.name for finding in examined.diagnosis.sick}

    def value(self, located: Located) -> Tensor | None:
        """Its values of the same tensor, where it has it in the same shape and they are sound."""
        partner = self._partners.get(located.name)
        if partner is None or partner.name in self._sick or partner.tensor.shape != located.tensor.shape:
            return None
        return self._file.read(partner.tensor)

    def number(self, name: str) -> float | None:
        """Its Python float of the same path, where that is sound."""
        found = self.examined.layout.numbers.get(name)
        return None if found is None or name in self._sick else found[1]


@contextmanager
def opened_sibling(path: Path, ours: Examined) -> Iterator[Sibling]:
    """A sibling to restore from.

    Raises:
        CheckpointError: there is none, or it cannot be read or trusted (exit code 2).
    """
    examined = examine(path)
    if examined.diagnosis.verdict in ("unreadable", "unsafe"):
        found = examined.diagnosis.findings[0]
        raise CheckpointError(
            f"--against {path}: is {examined.diagnosis.verdict}: {found.text}; name a healthy sibling",
            exit_code=EXIT_WRONG_REQUEST,
        )
    with examined.contents.open() as file:
        yield Sibling(examined, ours, file)


def healthy_neighbour(ours: Examined) -> Path | None:
    """The nearest checkpoint beside ours that is healthy: of a run by step, of a folder of files the newest."""
    path = ours.diagnosis.path
    try:
        beside = [each for each in checkpoints_in(path.parent) if each != path and FIXED not in each.name]
    except CheckpointError:
        return None
    if is_checkpoint_folder(path):
        beside = [each for each in beside if _says_healthy(each)]
        beside.sort(key=lambda each: _distance(each, ours.diagnosis.step))
    else:
        beside = [each for each in beside if each.suffix == path.suffix and path.suffix in SUFFIXES]
        beside.sort(key=lambda each: -each.stat().st_mtime)
    for each in beside[:MAX_LOOKED_AT]:
        examined = examine(each)
        alike = len(partners(ours.layout.tensors, examined.layout.tensors)) >= len(ours.layout.tensors) / 2
        if examined.diagnosis.verdict == "healthy" and alike:
            return each
    return None


def _says_healthy(folder: Path) -> bool:
    try:
        manifest = read_manifest(folder)
    except CheckpointError:
        return False
    return bool(manifest.get("healthy")) and "capsule_version" not in manifest


def _distance(folder: Path, step: int | None) -> tuple[bool, int]:
    """Earlier ones first: what came later has the sickness behind it."""
    theirs = int(read_manifest(folder).get("step", 0))
    return (theirs > (step or 0), abs(theirs - (step or 0)))
