"""Scans in NRRD with the data in the same file, turned to the axes of the body. pynrrd reads them."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.scans import Scan
from hpcstab.errors import DataError

_TO_RIGHT_FRONT_HEAD = {
    "left-posterior-superior": (-1.0, -1.0, 1.0),
    "lps": (-1.0, -1.0, 1.0),
    "right-anterior-superior": (1.0, 1.0, 1.0),
    "ras": (1.0, 1.0, 1.0),
    "left-anterior-superior": (-1.0, 1.0, 1.0),
    "las": (-1.0, 1.0, 1.0),
}


def read_nrrd_scan(content: bytes, name: str) -> Scan:
    """A scan of three axes, turned by whole quarters only: each voxel stays where it was.

    Args:
        name: of the file, for errors.

    Raises:
        DataError: no NRRD file of three axes, no place in the body in it, or cut short.
    """
    import nibabel
    import nrrd

    stream = io.BytesIO(content)
    try:
        header = nrrd.read_header(stream)
    except (nrrd.NRRDError, UnicodeDecodeError, ValueError, KeyError) as error:
        raise DataError(f"{name}: is no NRRD file: {str(error).splitlines()[0]}") from None
    if "data file" in header or "datafile" in header:
        raise DataError(f"{name}: has its data in another file; read are files that hold both")
    affine = _affine(header, name)
    try:
        voxels = nrrd.read_data(header, stream)
    except (nrrd.NRRDError, ValueError, OSError, EOFError) as error:
        shape = " x ".join(map(str, header["sizes"]))
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise DataError(f"{name}: is cut short or damaged, it has not the {shape} voxels it names: {reason}") from None
    turned = nibabel.as_closest_canonical(nibabel.Nifti1Image(voxels, affine, dtype=voxels.dtype))
    return Scan(np.ascontiguousarray(np.asanyarray(turned.dataobj)), np.asarray(turned.affine, np.float64))


def _affine(header: dict[str, object], name: str) -> NDArray[np.float64]:
    """Voxel -> mm towards the right, the front, the head."""
    if header.get("dimension") != 3:
        raise DataError(f"{name}: has {header.get('dimension')} axes; read are scans of 3")
    space = str(header.get("space", "")).lower()
    missing = [key for key in ("space directions", "space origin") if key not in header]
    if space not in _TO_RIGHT_FRONT_HEAD or missing:
        allowed = ", ".join(key for key in _TO_RIGHT_FRONT_HEAD if "-" in key)
        raise DataError(
            f"{name}: does not say where it lies in the body: space '{space}'"
            f"{', without ' + ' and '.join(missing) if missing else ''}; read are {allowed}"
        )
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(header["space directions"], np.float64).T
    affine[:3, 3] = np.asarray(header["space origin"], np.float64)
    return np.diag([*_TO_RIGHT_FRONT_HEAD[space], 1.0]) @ affine
