"""Subjects of a user's folder in the layout of Learn2Reg (OASIS): what is wrong with one is named and counted.

``imagesTr/<name>.nii.gz`` and, under the same name, ``labelsTr/<name>.nii.gz``: affinely aligned scans on one grid,
labels 0 (background) to 255.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from hpcstab.data.diffeomorphisms import Points
from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.registration import Intensities, Labels
from hpcstab.data.scans import Scan, check_same_grid
from hpcstab.errors import DataError
from hpcstab.task import DataFinding, FindingKind

IMAGES, LABELS = "imagesTr", "labelsTr"
_SUFFIXES = (".nii.gz", ".nii")
_LARGEST_LABEL = 255
_MAX_NAMES = 3
_SMOOTHING = 0.4  # of a voxel of the cube: the spread of the blur before points of a scan are taken
_TEXTS: dict[FindingKind, str] = {
    "missing": "have no partner of the same name",
    "unreadable": "cannot be read",
    "grid": "lie elsewhere than the first one, or their labels elsewhere than their image",
    "non_finite": "hold NaN or infinities",
    "constant": "are constant",
    "labels": f"have labels that are not whole numbers from 0 to {_LARGEST_LABEL}, or none that another subject has",
}


@dataclass(frozen=True)
class ScannedSubject:
    """``image`` (blurred to the cube's voxels) and ``labels`` on one grid, seen as a cube around the whole scan."""

    name: str
    image: Scan
    labels: Scan
    edge: int

    def look_up(self, points: Points) -> tuple[Intensities, Labels]:
        """Intensities between voxels linearly, labels of the nearest voxel; 0 outside of the scan."""
        from scipy.ndimage import map_coordinates

        shape = np.array(self.image.voxels.shape)
        spacing = np.array(self.image.spacing_mm)
        step_mm = float((shape * spacing).max()) / self.edge
        places = (points * step_mm / spacing + (shape - 1) / 2.0).T
        intensities = map_coordinates(self.image.voxels, places, order=1, output=np.float32)
        return intensities, map_coordinates(self.labels.voxels, places, order=0, output=np.uint8)


@dataclass(frozen=True)
class Subjects:
    """Those that can be used, in order of their names, and ``findings``: what was left out and why."""

    subjects: tuple[ScannedSubject, ...]
    findings: tuple[DataFinding, ...]


class _UnusableError(Exception):
    """One subject cannot be used: ``kind`` of the finding and, as text, what it is instead."""

    def __init__(self, kind: FindingKind, what: str) -> None:
        super().__init__(what)
        self.kind: FindingKind = kind


def read_subjects(folder: Path, edge: int) -> Subjects:
    """All subjects of a folder for cubes of ``edge`` voxels.

    Raises:
        DataError: no such folder, or fewer than four subjects that can be used: two to train on, two to hold out.
    """
    images, labels = subject_files(folder)
    usable: list[ScannedSubject] = []
    bad: dict[FindingKind, list[str]] = defaultdict(list)
    for name in sorted(images.keys() | labels.keys()):
        try:
            usable.append(_read(name, images, labels, usable[0] if usable else None, edge))
        except _UnusableError as error:
            bad[error.kind].append(f"{name} ({error})")
    usable = _with_common_labels(usable, bad)
    num_all = len(images.keys() | labels.keys())
    findings = tuple(_finding(kind, names, num_all) for kind, names in bad.items())
    if len(usable) < 4:
        problems = "; ".join(finding.message for finding in findings)
        raise DataError(
            f"'{folder}': {len(usable)} of {num_all} subjects can be used; four are needed, two to train on and two to"
            f" hold out{': ' if problems else ''}{problems}"
        )
    return Subjects(tuple(usable), findings)


def subject_files(folder: Path) -> tuple[dict[str, Path], dict[str, Path]]:
    """Images and labels by the name of the subject; ``~`` is the user's home.

    Raises:
        DataError: one of the two folders is not there, or neither holds a scan.
    """
    images, labels = (_files(folder.expanduser() / part) for part in (IMAGES, LABELS))
    if not images and not labels:
        raise DataError(
            f"'{folder}' holds no subject; read are {IMAGES}/NAME.nii.gz with {LABELS}/NAME.nii.gz (or .nii)"
        )
    return images, labels


def _files(folder: Path) -> dict[str, Path]:
    """Name of the subject -> its file."""
    try:
        paths = list(folder.iterdir())
    except OSError as error:
        raise DataError(
            f"'{folder}' cannot be read: {error.strerror}; data.folder must hold {IMAGES}/ and {LABELS}/ with files of"
            " the same names"
        ) from None
    return {path.name.split(".nii")[0]: path for path in paths if path.name.endswith(_SUFFIXES)}


def _read(
    name: str, images: dict[str, Path], labels: dict[str, Path], first: ScannedSubject | None, edge: int
) -> ScannedSubject:
    for part, files in ((IMAGES, images), (LABELS, labels)):
        if name not in files:
            raise _UnusableError("missing", f"none in {part}")
    image, regions = (_scan(files[name]) for files in (images, labels))
    if not np.isfinite(image.voxels).all():
        raise _UnusableError("non_finite", f"{np.count_nonzero(~np.isfinite(image.voxels))} voxels")
    if image.voxels.min() == image.voxels.max():
        raise _UnusableError("constant", f"{image.voxels.min():g} everywhere")
    try:
        check_same_grid(image, regions, ("its image", "its map of labels"))
        if first is not None:
            check_same_grid(first.image, image, (first.name, "it"))
    except DataError as error:
        raise _UnusableError("grid", str(error)) from None
    return ScannedSubject(name, _blurred(image, edge), _as_labels(regions), edge)


def _scan(path: Path) -> Scan:
    try:
        return read_scan(path.read_bytes(), path.name)
    except OSError as error:
        raise _UnusableError("unreadable", f"{path.name}: {error.strerror}") from None
    except DataError as error:
        raise _UnusableError("unreadable", str(error)) from None


def _as_labels(scan: Scan) -> Scan:
    values = scan.voxels
    if not (np.isfinite(values).all() and values.min() >= 0 and values.max() <= _LARGEST_LABEL):
        raise _UnusableError("labels", f"{values.min():g} to {values.max():g}")
    whole = np.rint(values)
    if not np.array_equal(whole, values):
        raise _UnusableError("labels", "not whole numbers")
    return Scan(whole.astype(np.uint8), scan.affine)


def _blurred(scan: Scan, edge: int) -> Scan:
    from scipy.ndimage import gaussian_filter

    shape, spacing = np.array(scan.voxels.shape), np.array(scan.spacing_mm)
    step_mm = float((shape * spacing).max()) / edge
    return Scan(gaussian_filter(scan.voxels.astype(np.float32), _SMOOTHING * step_mm / spacing), scan.affine)


def _with_common_labels(subjects: list[ScannedSubject], bad: dict[FindingKind, list[str]]) -> list[ScannedSubject]:
    """Without those that share no label with any other subject: another scheme."""
    sets = [set(np.unique(subject.labels.voxels).tolist()) - {0} for subject in subjects]
    kept = []
    for number, subject in enumerate(subjects):
        others = set().union(*(labels for other, labels in enumerate(sets) if other != number))
        if len(subjects) > 1 and not sets[number] & others:
            bad["labels"].append(f"{subject.name} (none of its {len(sets[number])} labels stands in another subject)")
        else:
            kept.append(subject)
    return kept


def _finding(kind: FindingKind, names: list[str], num_all: int) -> DataFinding:
    some = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return DataFinding(kind, "all", len(names), f"{len(names)} of {num_all} subjects {_TEXTS[kind]}, left out: {some}")
