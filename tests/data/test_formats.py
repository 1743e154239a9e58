"""Readers of the real file formats: values and axes come back, and what is damaged is refused by name."""

from __future__ import annotations

import gzip
import io
import struct

import nibabel
import numpy as np
import pytest
from scipy.io import netcdf_file

from hpcstab.data.formats.ccp4 import read_density_map
from hpcstab.data.formats.netcdf import read_variable
from hpcstab.data.formats.nifti import read_scan
from hpcstab.data.formats.pp import read_pp, stack_volumes
from hpcstab.errors import DataError
from tests.data.stand_ins import density_map, nifti, pp_field

VALUES = np.random.default_rng(0).standard_normal((3, 4, 5)).astype(np.float32)


def test_density_map_comes_back() -> None:
    content = density_map(VALUES)
    np.testing.assert_array_equal(read_density_map(content, "m"), VALUES)
    with pytest.raises(DataError, match=r"m: is cut short, .* hold no \(3, 4, 5\) map"):
        read_density_map(content[:-1], "m")
    with pytest.raises(DataError, match="no CCP4 or MRC map"):
        read_density_map(bytes(2000), "m")
    with pytest.raises(DataError, match="mode 0; only mode 2"):
        read_density_map(content[:12] + bytes(4) + content[16:], "m")


def test_pp_fields_become_volumes_by_time_and_level() -> None:
    grid = VALUES[None] + np.arange(2, dtype=np.float32).reshape(2, 1, 1, 1)  # (times, levels, rows, columns)
    records = [pp_field(4, 10 * time, level, grid[time, level]) for time in (1, 0) for level in (2, 0, 1)]
    content = b"".join([*records, pp_field(408, 0, 0, VALUES[0])])
    fields = read_pp(content, "p")
    assert len(fields) == 7
    assert (fields[0].quantity, fields[0].time, fields[0].level) == (4, (2009, 9, 9, 22, 10), 2)
    np.testing.assert_array_equal(stack_volumes(fields, 4, "p"), grid)
    with pytest.raises(DataError, match="p: has 5 fields of quantity 4, no whole grid"):
        stack_volumes(fields[1:], 4, "p")
    with pytest.raises(DataError, match="no whole grid"):
        stack_volumes(fields, 5, "p")
    with pytest.raises(DataError, match="no whole record at byte"):
        read_pp(content[:-1], "p")


def test_netcdf_fill_values_are_nan() -> None:
    stream = io.BytesIO()
    with netcdf_file(stream, "w") as file:
        for name, length in zip("abc", VALUES.shape, strict=True):
            file.createDimension(name, length)
        variable = file.createVariable("UWND", "f4", tuple("abc"))
        variable[:] = np.where(np.arange(60).reshape(3, 4, 5) == 7, -99.9, VALUES)
        variable.missing_value = np.float32(-99.9)
        file.flush()
        content = stream.getvalue()
    read = read_variable(content, "UWND", "n")
    assert np.argwhere(np.isnan(read)).tolist() == [[0, 1, 2]]
    assert (read == VALUES).sum() == 59
    with pytest.raises(DataError, match="n: cannot be read as classic NetCDF with a variable VWND"):
        read_variable(content, "VWND", "n")
    with pytest.raises(DataError, match="cannot be read"):
        read_variable(b"not a file", "UWND", "n")


def test_a_scan_is_turned_to_the_axes_of_the_body() -> None:
    """Voxel axes that run left, down, to the front (as pycortex' scan has them) against right, front, up."""
    body = np.random.default_rng(1).integers(0, 255, (3, 4, 5), dtype=np.uint8)
    voxels = np.flip(body.transpose(0, 2, 1), (0, 1))
    affine = np.array([[-1, 0, 0, 9], [0, 0, 1, 9], [0, -1, 0, 9]])
    content = nifti(voxels, affine)
    scan = read_scan(content, "s")
    np.testing.assert_array_equal(scan.voxels, body)
    assert scan.voxels.dtype == np.uint8
    np.testing.assert_array_equal(scan.affine[:3, :3], np.eye(3))
    np.testing.assert_array_equal(scan.affine[:3, 3], affine @ [2, 4, 0, 1])  # the first voxel's place
    assert scan.spacing_mm == (1.0, 1.0, 1.0)
    with pytest.raises(DataError, match="s: cannot be decompressed"):
        read_scan(content[:-20], "s")
    with pytest.raises(DataError, match="is cut short, it has not the 3 x 5 x 4 voxels"):
        read_scan(gzip.decompress(content)[:-1], "s")
    for damaged in (bytes(400), b"text", gzip.decompress(content)[:300]):
        with pytest.raises(DataError, match="s: is no NIfTI file"):
            read_scan(damaged, "s")
    with pytest.raises(DataError, match="has 4 axes"):
        read_scan(_changed(content, 40, struct.pack("<5h", 4, 3, 5, 2, 2)), "s")
    with pytest.raises(DataError, match="does not say where it lies"):
        read_scan(_changed(content, 252, bytes(4)), "s")


def test_a_scan_of_another_type_is_scaled_as_its_header_says() -> None:
    image = nibabel.Nifti2Image(np.arange(24, dtype=np.int16).reshape(2, 3, 4), np.diag([2.0, 2.0, 3.0, 1.0]))
    image.header.set_slope_inter(0.5, -1.0)
    scan = read_scan(image.to_bytes(), "s")
    np.testing.assert_array_equal(scan.voxels, np.arange(24).reshape(2, 3, 4) * 0.5 - 1.0)
    assert scan.spacing_mm == (2.0, 2.0, 3.0)


def _changed(content: bytes, place: int, instead: bytes) -> bytes:
    raw = bytearray(gzip.decompress(content))
    raw[place : place + len(instead)] = instead
    return bytes(raw)
