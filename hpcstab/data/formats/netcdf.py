"""Variables of classic NetCDF files (version 3)."""

from __future__ import annotations

import io

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError


def read_variable(content: bytes, variable: str, name: str) -> NDArray[np.float32]:
    """One variable as stored, as float32; its fill value, where it has one, becomes NaN.

    Raises:
        DataError: no classic NetCDF file, or it has no such variable.
    """
    from scipy.io import netcdf_file

    try:
        with netcdf_file(io.BytesIO(content), "r", mmap=False) as file:
            stored = file.variables[variable]
            values = np.array(stored.data, np.float32)
            fill = getattr(stored, "missing_value", None)
    except (TypeError, ValueError, IndexError, KeyError) as error:
        raise DataError(f"{name}: cannot be read as classic NetCDF with a variable {variable}: {error}") from None
    if fill is not None:
        values[values == np.float32(fill)] = np.nan
    return values
