"""Scans in NIfTI, compressed or not, turned to the axes of the body. nibabel reads them."""

from __future__ import annotations

import gzip
import zlib

import numpy as np

from hpcstab.data.scans import Scan
from hpcstab.errors import DataError


def read_scan(content: bytes, name: str) -> Scan:
    """A scan of three axes, turned by whole quarters only: each voxel stays where it was. Stored scaling is applied.

    Args:
        name: of the file, for errors.

    Raises:
        DataError: no NIfTI file of three axes, no affine in it, or cut short.
    """
    import nibabel
    from nibabel.filebasedimages import ImageFileError
    from nibabel.spatialimages import HeaderDataError
    from nibabel.wrapstruct import WrapStructError

    try:
        raw = gzip.decompress(content) if content[:2] == b"\x1f\x8b" else content
    except (OSError, EOFError, zlib.error) as error:
        raise DataError(f"{name}: cannot be decompressed: {error}") from None
    form = nibabel.Nifti2Image if raw[:4] in (b"\x1c\x02\0\0", b"\0\0\x02\x1c") else nibabel.Nifti1Image
    try:
        image = form.from_bytes(raw)
    except (ImageFileError, HeaderDataError, WrapStructError, ValueError) as error:
        raise DataError(f"{name}: is no NIfTI file: {error}") from None
    if len(image.shape) != 3:
        raise DataError(f"{name}: has {len(image.shape)} axes; read are scans of 3")
    if image.header["qform_code"] == 0 and image.header["sform_code"] == 0:
        raise DataError(f"{name}: does not say where it lies in the body (qform and sform code are 0)")
    try:
        turned = nibabel.as_closest_canonical(image)
        voxels = np.ascontiguousarray(np.asanyarray(turned.dataobj))
    except (OSError, ValueError):
        shape = " x ".join(map(str, image.shape))
        raise DataError(f"{name}: is cut short, it has not the {shape} voxels it names") from None
    return Scan(voxels, np.asarray(turned.affine, np.float64))
