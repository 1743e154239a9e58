"""Density maps of crystallography and electron microscopy: CCP4, and MRC, which shares its header."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError

_HEADER_BYTES = 1024
_FLOAT32_MODE = 2


def read_density_map(content: bytes, name: str) -> NDArray[np.float32]:
    """The map (sections, rows, columns), little-endian float32 as stored.

    Args:
        name: of the file, for errors.

    Raises:
        DataError: no CCP4 or MRC map, not float32, or shorter than its header says.
    """
    if content[208:212] != b"MAP ":
        raise DataError(f"{name}: is no CCP4 or MRC map, the word MAP is not in its header")
    header = np.frombuffer(content, "<i4", _HEADER_BYTES // 4)
    columns, rows, sections, mode = header[:4].tolist()
    if mode != _FLOAT32_MODE:
        raise DataError(f"{name}: holds values of MRC mode {mode}; only mode {_FLOAT32_MODE} (float32) is read")
    start = _HEADER_BYTES + int(header[23])  # symmetry records lie between the header and the map
    if len(content) < start + 4 * columns * rows * sections:
        raise DataError(f"{name}: is cut short, {len(content):,} bytes hold no ({sections}, {rows}, {columns}) map")
    values = np.frombuffer(content, "<f4", columns * rows * sections, start)
    return values.reshape(sections, rows, columns).astype(np.float32)
