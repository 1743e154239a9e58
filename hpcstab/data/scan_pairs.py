"""Pairs of a CT and an X-ray in a user's folder: what is wrong with one is named and counted.

``<name>_ct.nii.gz`` and ``<name>_xray.nii.gz`` (or .nii): the film one voxel deep from back to front, on the extent of
the CT from side to side and from foot to head.
"""

from __future__ import annotations

from collections import defaultdict
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.chest_scans import check_hounsfield, describe
from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.scans import Scan
from hpcstab.errors import DataError
from hpcstab.task import DataFinding, FindingKind

_SUFFIXES = (".nii.gz", ".nii")
_ROLES = ("ct", "xray")
_MAX_NAMES = 3
_SAME_EXTENT = 0.02  # relative
_TEXTS: dict[FindingKind, str] = {
    "unreadable": "cannot be read, or have no partner",
    "shape": "do not lie on one another",
    "constant": "are constant",
    "non_finite": "hold NaN or infinities",
    "range": "are no CT in Hounsfield units",
}


@dataclass(frozen=True)
class ScanPair:
    """A CT in HU and its film (H, W) in [0, 1], the head up, the patient's right on the left."""

    name: str
    ct: Scan
    film: NDArray[np.float32]


@dataclass(frozen=True)
class ScanPairs:
    """The pairs that can be used, in the order of their names; ``findings`` name the others."""

    pairs: list[ScanPair]
    findings: tuple[DataFinding, ...]
    facts: dict[str, int | float | str]


class _UnusableError(Exception):
    def __init__(self, kind: FindingKind, what: str) -> None:
        super().__init__(what)
        self.kind: FindingKind = kind


def read_pairs(folder: Path) -> ScanPairs:
    """All pairs of a folder.

    Raises:
        DataError: no such folder, no pair in it, or fewer than two that can be used.
    """
    found = pair_files(folder)
    usable: list[ScanPair] = []
    bad: dict[FindingKind, list[str]] = defaultdict(list)
    for name, files in sorted(found.items()):
        try:
            usable.append(_read_pair(name, files))
        except _UnusableError as error:
            bad[error.kind].append(f"{name} ({error})")
    findings = tuple(_finding(kind, names, len(found)) for kind, names in bad.items())
    if len(usable) < 2:
        problems = "; ".join(finding.message for finding in findings) or "two are needed, one to hold out"
        raise DataError(f"folder '{folder}': {len(usable)} of {len(found)} pairs can be used: {problems}")
    facts: dict[str, int | float | str] = {
        "source": f"pairs of {folder}",
        "num_left_out": len(found) - len(usable),
        "scans": "; ".join(describe(pair.ct, pair.name) for pair in usable[:_MAX_NAMES]),
    }
    return ScanPairs(usable, findings, facts)


def pair_files(folder: Path) -> dict[str, dict[str, Path]]:
    """name -> role -> file; ``~`` is the user's home.

    Raises:
        DataError: no such folder, or no pair in it.
    """
    try:
        paths = sorted(folder.expanduser().iterdir())
    except OSError as error:
        raise DataError(f"folder '{folder}' cannot be read: {error.strerror}") from None
    found: dict[str, dict[str, Path]] = defaultdict(dict)
    for path in paths:
        for role in _ROLES:
            for suffix in _SUFFIXES:
                if path.name.endswith(f"_{role}{suffix}"):
                    found[path.name.removesuffix(f"_{role}{suffix}")][role] = path
    if not found:
        raise DataError(f"folder '{folder}' holds no pair; read are <name>_ct.nii.gz with <name>_xray.nii.gz (or .nii)")
    return found


def _read_pair(name: str, files: dict[str, Path]) -> ScanPair:
    missing = [role for role in _ROLES if role not in files]
    if missing:
        raise _UnusableError("unreadable", f"there is no {name}_{missing[0]} file")
    ct, film = (_read(files[role]) for role in _ROLES)
    for role, scan in (("ct", ct), ("xray", film)):
        if not np.isfinite(scan.voxels).all():
            raise _UnusableError("non_finite", f"{role}: {np.count_nonzero(~np.isfinite(scan.voxels))} values")
        if scan.voxels.min() == scan.voxels.max():
            raise _UnusableError("constant", f"{role}: {scan.voxels.flat[0]:g} everywhere")
    try:
        check_hounsfield(ct, "ct")
    except DataError as error:
        raise _UnusableError("range", str(error)) from None
    _check_extents(ct, film)
    values = film.voxels[:, 0, :].astype(np.float32)
    upright = values.T[::-1, ::-1]
    low, high = float(values.min()), float(values.max())
    return ScanPair(name, ct, np.ascontiguousarray((upright - low) / (high - low)))


def _read(path: Path) -> Scan:
    try:
        return read_scan(path.read_bytes(), path.name)
    except (DataError, OSError) as error:
        raise _UnusableError("unreadable", str(error)) from None


def _check_extents(ct: Scan, film: Scan) -> None:
    if film.voxels.shape[1] != 1:
        shape = " x ".join(map(str, film.voxels.shape))
        raise _UnusableError("shape", f"xray is {shape}, a film is one voxel deep from back to front")
    for axis, direction in ((0, "from side to side"), (2, "from foot to head")):
        extents = [scan.voxels.shape[axis] * scan.spacing_mm[axis] for scan in (ct, film)]
        if abs(extents[0] - extents[1]) > _SAME_EXTENT * extents[0]:
            spacings = [f"{scan.spacing_mm[axis]:g}" for scan in (ct, film)]
            raise _UnusableError(
                "shape",
                f"ct spans {extents[0]:g} mm {direction} (spacing {spacings[0]} mm), xray {extents[1]:g} mm (spacing"
                f" {spacings[1]} mm)",
            )


def _finding(kind: FindingKind, names: list[str], num_pairs: int) -> DataFinding:
    some = ", ".join(names[:_MAX_NAMES]) + (", ..." if len(names) > _MAX_NAMES else "")
    return DataFinding(kind, "all", len(names), f"{len(names)} of {num_pairs} pairs {_TEXTS[kind]}, left out: {some}")
