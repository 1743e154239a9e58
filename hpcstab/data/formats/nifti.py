"""Scans in NIfTI-1, compressed or not, turned to the axes of the body."""

from __future__ import annotations

import gzip
import zlib

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError

_HEADER_BYTES = 348
_UINT8 = 2


def read_scan(content: bytes, name: str) -> NDArray[np.uint8]:
    """A scan (X, Y, Z) of uint8: x to the patient's right, y to the front, z to the head, each voxel where it was.

    Raises:
        DataError: no NIfTI-1 file of three axes and uint8 without scaling, no affine in it, or cut short.
    """
    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be decompressed: {error}") from None
    if len(raw) < _HEADER_BYTES or raw[344:347] not in (b"n+1", b"ni1"):
        raise DataError(f"{name}: is no NIfTI-1 file")
    num_axes, *shape = np.frombuffer(raw, "<i2", 4, 40).tolist()
    data_type, affine_code = (int(np.frombuffer(raw, "<i2", 1, offset)[0]) for offset in (70, 254))
    offset, slope = np.frombuffer(raw, "<f4", 2, 108).tolist()
    if num_axes != 3 or data_type != _UINT8 or slope not in (0.0, 1.0) or affine_code == 0:
        raise DataError(
            f"{name}: has {num_axes} axes, data type {data_type}, scale {slope:g}, affine code {affine_code}; read are"
            f" 3 axes, uint8 ({_UINT8}), no scale, an affine"
        )
    if len(raw) < int(offset) + int(np.prod(shape)):
        raise DataError(f"{name}: is cut short, it has not the {shape[0]} x {shape[1]} x {shape[2]} voxels it names")
    voxels = np.frombuffer(raw, np.uint8, int(np.prod(shape)), int(offset)).reshape(shape, order="F")
    return _to_body_axes(voxels, np.frombuffer(raw, "<f4", 12, 280).reshape(3, 4)[:, :3])


def _to_body_axes(voxels: NDArray[np.uint8], affine: NDArray[np.float32]) -> NDArray[np.uint8]:
    """``affine`` (3, 3): a step along voxel axis j moves by column j along the body's axes."""
    order = np.abs(affine).argmax(axis=1)  # for each axis of the body, the voxel axis along it
    turned = voxels.transpose(order)
    backwards = tuple(axis for axis in range(3) if affine[axis, order[axis]] < 0)
    return np.ascontiguousarray(np.flip(turned, backwards))
