"""Scans on other grids, and scans that do not lie on one."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.scans import Scan, check_same_grid, resample
from hpcstab.errors import DataError


def test_a_linear_field_is_the_same_field_on_another_grid() -> None:
    """Intensities that are a linear function of the place in mm are met exactly by linear interpolation."""
    affine = np.diag([1.0, 1.0, 2.0, 1.0])
    affine[:3, 3] = [-3.0, 0.0, 5.0]
    x, y, z = np.meshgrid(np.arange(8) - 3.0, np.arange(8.0), 5.0 + 2.0 * np.arange(8), indexing="ij")
    scan = Scan(x + 10 * y - z, affine)
    coarse = np.diag([2.0, 2.0, 2.0, 1.0])
    coarse[:3, 3] = [-3.0, 0.0, 6.0]
    moved = resample(scan, (4, 4, 6), coarse, order=1, fill=0.0)
    x, y, z = np.meshgrid(2.0 * np.arange(4) - 3.0, 2.0 * np.arange(4), 6.0 + 2.0 * np.arange(6), indexing="ij")
    np.testing.assert_allclose(moved.voxels, x + 10 * y - z)
    assert moved.spacing_mm == (2.0, 2.0, 2.0)


def test_outside_of_a_scan_is_the_fill() -> None:
    affine = np.eye(4)
    affine[0, 3] = -2.0
    moved = resample(Scan(np.ones((2, 2, 2)), np.eye(4)), (4, 2, 2), affine, order=0, fill=-1000.0)
    assert moved.voxels[:, 0, 0].tolist() == [-1000.0, -1000.0, 1.0, 1.0]


def test_labels_must_lie_on_the_grid_of_their_image() -> None:
    image, labels = Scan(np.zeros((4, 4, 4)), np.eye(4)), Scan(np.zeros((4, 4, 4)), np.eye(4))
    check_same_grid(image, labels, ("image.nii", "labels.nii"))
    with pytest.raises(DataError, match=r"labels.nii has 4 x 4 x 3 voxels, image.nii has 4 x 4 x 4"):
        check_same_grid(image, Scan(np.zeros((4, 4, 3)), np.eye(4)), ("image.nii", "labels.nii"))
    with pytest.raises(DataError, match=r"labels.nii \(spacing 2 x 2 x 2 mm\) lies elsewhere than image.nii"):
        check_same_grid(image, Scan(np.zeros((4, 4, 4)), np.diag([2.0, 2, 2, 1])), ("image.nii", "labels.nii"))
