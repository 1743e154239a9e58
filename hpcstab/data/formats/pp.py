"""Fields of the UK Met Office's PP format: records of big-endian float32, one horizontal field each."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError

_HEADER_BYTES = 256  # 45 int32, then 19 float32
_NUM_INTEGERS = 45
_YEAR, _MINUTE, _ROWS, _COLUMNS, _PACKING, _LEVEL, _QUANTITY = 0, 4, 17, 18, 20, 32, 41


@dataclass(frozen=True)
class PPField:
    """``quantity`` is a STASH code, ``time`` (year, month, day, hour, minute), ``values`` are (rows, columns)."""

    quantity: int
    time: tuple[int, ...]
    level: int
    values: NDArray[np.float32]


def read_pp(content: bytes, name: str) -> list[PPField]:
    """All fields of a file, in its order.

    Raises:
        DataError: no PP file, a packed field, or a record that is cut short.
    """
    fields: list[PPField] = []
    records = _records(content, name)
    for header in records:
        integers = np.frombuffer(header, ">i4", _NUM_INTEGERS) if len(header) == _HEADER_BYTES else None
        data = next(records, b"")
        if integers is None or integers[_PACKING] != 0:
            raise DataError(f"{name}: record {len(fields)} is no unpacked PP field")
        rows, columns = int(integers[_ROWS]), int(integers[_COLUMNS])
        if len(data) < 4 * rows * columns:
            raise DataError(f"{name}: field {len(fields)} of ({rows}, {columns}) has {len(data)} bytes only")
        values = np.frombuffer(data, ">f4", rows * columns).reshape(rows, columns).astype(np.float32)
        time = tuple(integers[_YEAR : _MINUTE + 1].tolist())
        fields.append(PPField(int(integers[_QUANTITY]), time, int(integers[_LEVEL]), values))
    return fields


def stack_volumes(fields: list[PPField], quantity: int, name: str) -> NDArray[np.float32]:
    """The fields of one quantity as (times, levels, rows, columns), times and levels ascending.

    Raises:
        DataError: there are none, or a level of a time is missing.
    """
    chosen = {(field.time, field.level): field.values for field in fields if field.quantity == quantity}
    times, levels = sorted({time for time, _ in chosen}), sorted({level for _, level in chosen})
    if not chosen or len(chosen) < len(times) * len(levels):
        raise DataError(f"{name}: has {len(chosen)} fields of quantity {quantity}, no whole grid of times and levels")
    return np.stack([np.stack([chosen[time, level] for level in levels]) for time in times])


def _records(content: bytes, name: str) -> Iterator[bytes]:
    """Fortran records: a length of 4 bytes before and after each."""
    start = 0
    while start < len(content):
        length = int.from_bytes(content[start : start + 4], "big")
        end = start + 4 + length
        if content[start : start + 4] != content[end : end + 4]:
            raise DataError(f"{name}: is no PP file or is cut short: no whole record at byte {start}")
        yield content[start + 4 : end]
        start = end + 4
