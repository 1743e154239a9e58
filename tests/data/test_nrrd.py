"""NRRD scans: values and place come back in the axes of the body, and what is damaged is refused by name."""

from __future__ import annotations

import io
from typing import Any

import nrrd
import numpy as np
import pytest
from numpy.typing import NDArray

from hpcstab.data.formats.nrrd import read_nrrd_scan
from hpcstab.errors import DataError

VOXELS = np.random.default_rng(0).integers(-1000, 1000, (3, 4, 5)).astype(np.int16)


def nrrd_bytes(voxels: NDArray[Any] = VOXELS, **header: Any) -> bytes:
    """A file as scanners' software writes it: axes towards left, back and head."""
    fields = {
        "space": "left-posterior-superior",
        "space directions": np.diag([0.6, 0.6, 5.0]),
        "space origin": np.array([-10.0, -20.0, 30.0]),
        "encoding": "gzip",
        **header,
    }
    stream = io.BytesIO()
    nrrd.write(stream, voxels, {key: value for key, value in fields.items() if value is not None})
    return stream.getvalue()


def test_a_scan_is_turned_to_right_front_and_head() -> None:
    scan = read_nrrd_scan(nrrd_bytes(), "s")
    np.testing.assert_array_equal(scan.voxels, VOXELS[::-1, ::-1])
    assert scan.voxels.dtype == np.int16
    assert scan.spacing_mm == pytest.approx((0.6, 0.6, 5.0))
    last = np.array([2, 3, 0])  # voxel of the file that comes first now
    in_file = np.array([-10.0, -20.0, 30.0]) + last * [0.6, 0.6, 5.0]
    np.testing.assert_allclose(scan.affine[:3, 3], in_file * [-1, -1, 1])


def test_ras_stays_as_it_is() -> None:
    scan = read_nrrd_scan(nrrd_bytes(space="right-anterior-superior"), "s")
    np.testing.assert_array_equal(scan.voxels, VOXELS)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"no such file", "s: is no NRRD file"),
        (nrrd_bytes()[:-20], "s: is cut short or damaged, it has not the 3 x 4 x 5 voxels"),
        (nrrd_bytes(encoding="raw")[:-3], "s: is cut short or damaged"),
        (nrrd_bytes(VOXELS[0], **{"space directions": None, "space origin": None, "space": None}), "s: has 2 axes"),
        (
            nrrd_bytes(**{"space directions": None, "space origin": None, "space": None}),
            "s: does not say where it lies in the body",
        ),
        (nrrd_bytes(space="scanner-xyz"), "space 'scanner-xyz'; read are left-posterior-superior"),
    ],
)
def test_what_cannot_be_read_says_why(content: bytes, message: str) -> None:
    with pytest.raises(DataError, match=message):
        read_nrrd_scan(content, "s")
