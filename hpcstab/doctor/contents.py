"""What a checkpoint file holds, found without loading it: stretches of bytes, tensors in them, containers around."""

from __future__ import annotations

import mmap
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from hpcstab.doctor.findings import Finding

Key = str | int


@dataclass(frozen=True)
class Record:
    """A stretch of the file with a name; ``crc`` is the checksum that the format keeps of it, if it keeps one."""

    name: str
    start: int
    num_bytes: int
    crc: int | None = None


@dataclass(frozen=True)
class StoredTensor:
    """A tensor as the file describes it; ``first`` and ``stride`` count elements in the record ``record``."""

    dtype: torch.dtype
    shape: tuple[int, ...]
    stride: tuple[int, ...]
    record: str
    first: int

    @property
    def num_values(self) -> int:
        return int(torch.Size(self.shape).numel())

    @property
    def extent(self) -> int:
        """Elements from its first to its last, both included."""
        if not self.num_values:
            return 0
        return 1 + sum((size - 1) * step for size, step in zip(self.shape, self.stride, strict=True))

    @property
    def first_byte(self) -> int:
        return self.first * self.dtype.itemsize

    @property
    def num_bytes(self) -> int:
        return self.extent * self.dtype.itemsize

    @property
    def is_dense(self) -> bool:
        """Whether its elements are all that lies between its first and its last, in whatever order of axes."""
        return self.extent == self.num_values

    def index_of(self, place: int) -> tuple[int, ...]:
        """The index of the element number ``place``: in memory of a dense tensor, row by row of one with gaps."""
        index = [0] * len(self.shape)
        stride = self.stride if self.is_dense else torch.empty(self.shape, device="meta").stride()
        for axis in sorted((axis for axis, size in enumerate(self.shape) if size > 1), key=lambda axis: -stride[axis]):
            index[axis], place = divmod(place, stride[axis])
        return tuple(index)


class End(NamedTuple):
    """A place in a pickle, and where the length of the frame around it is written (protocol 4 and later)."""

    place: int
    frame_length_at: int | None


@dataclass(frozen=True)
class Pickled:
    """Where things of a pickle lie in the file that it was read from.

    ``ends``: for each dict (by ``id``) the place behind the last of its entries; ``floats``: the eight bytes of each
    float. ``offset``: what is to be added to a place to have it in the file.
    """

    ends: dict[int, End]
    floats: dict[int, int]
    offset: int = 0


@dataclass
class Contents:
    """A file, taken apart.

    ``tree``: its containers with :class:`StoredTensor` as leaves. ``step``: where it says so. ``manifest``: of a folder
    of hpcstab, where it is sound; ``path`` is then the state file in it.
    """

    kind: str
    path: Path
    num_bytes: int
    records: dict[str, Record] = field(default_factory=dict)
    tree: Any = None
    pickled: Pickled | None = None
    findings: list[Finding] = field(default_factory=list)
    step: int | None = None
    manifest: dict[str, Any] | None = None
    is_zip: bool = False

    def place(self, tensor: StoredTensor) -> int:
        """Where its first byte lies in the file."""
        return self.records[tensor.record].start + tensor.first_byte

    @contextmanager
    def open(self) -> Iterator[TensorFile]:
        """The file, for reading tensors one by one."""
        with self.path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY) as mapped:
            opened = TensorFile(self, mapped)
            try:
                yield opened
            finally:
                opened.close()


class TensorFile:
    """Tensors of an open file. They are copies, so that they outlive it; nothing is kept of what was not asked for."""

    def __init__(self, contents: Contents, mapped: mmap.mmap) -> None:
        self._contents = contents
        self._view = memoryview(mapped)

    def close(self) -> None:
        self._view.release()

    def read(self, tensor: StoredTensor) -> Tensor:
        """A copy in the tensor's own shape, with its strides."""
        start = self._contents.place(tensor)
        raw = bytearray(self._view[start : start + tensor.num_bytes])
        if not raw:
            return torch.empty(tensor.shape, dtype=tensor.dtype)
        return torch.frombuffer(raw, dtype=tensor.dtype).as_strided(tensor.shape, tensor.stride)

    def pieces(self, tensor: StoredTensor, num_values: int) -> Iterator[Tensor]:
        """The elements between its first and its last, ``num_values`` at a time, as flat copies."""
        start, size = self._contents.place(tensor), tensor.dtype.itemsize
        for first in range(0, tensor.extent, num_values):
            last = min(first + num_values, tensor.extent)
            raw = bytearray(self._view[start + first * size : start + last * size])
            yield torch.frombuffer(raw, dtype=tensor.dtype)
