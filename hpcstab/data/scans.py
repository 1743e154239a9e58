"""Scans of a body: voxels with their place in millimetres, always turned to the same axes."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError


@dataclass(frozen=True)
class Scan:
    """``voxels`` (X, Y, Z): x to the patient's right, y to the front, z to the head. ``affine`` (4, 4): voxel -> mm."""

    voxels: NDArray[Any]
    affine: NDArray[np.float64]

    @property
    def spacing_mm(self) -> tuple[float, float, float]:
        """The length of a step along each voxel axis."""
        x, y, z = np.linalg.norm(self.affine[:3, :3], axis=0).tolist()
        return x, y, z


def resample(
    scan: Scan, shape: tuple[int, int, int], affine: NDArray[np.float64], order: Literal[0, 1], fill: float
) -> Scan:
    """The scan on another grid.

    Args:
        order: of the spline: 1 for intensities, 0 for labels. A coarser grid takes points, not means: smooth before it.
        fill: value outside of the scan.
    """
    from scipy.ndimage import affine_transform

    to_scan = np.linalg.inv(scan.affine) @ affine
    voxels = affine_transform(scan.voxels, to_scan[:3, :3], to_scan[:3, 3], shape, order=order, cval=fill)
    return Scan(voxels, affine)


def check_same_grid(first: Scan, second: Scan, names: tuple[str, str]) -> None:
    """Labels must lie where their image lies.

    Raises:
        DataError: shapes differ, or affines by more than a hundredth of a millimetre.
    """
    if first.voxels.shape != second.voxels.shape:
        raise DataError(
            f"{names[1]} has {_by(second.voxels.shape)} voxels, {names[0]} has {_by(first.voxels.shape)}; both must lie"
            " on one grid"
        )
    if not np.allclose(first.affine, second.affine, atol=0.01):
        spacings = [" x ".join(f"{edge:g}" for edge in scan.spacing_mm) for scan in (first, second)]
        raise DataError(
            f"{names[1]} (spacing {spacings[1]} mm) lies elsewhere than {names[0]} (spacing {spacings[0]} mm); both"
            " must lie on one grid"
        )


def _by(shape: tuple[int, ...]) -> str:
    return " x ".join(map(str, shape))
