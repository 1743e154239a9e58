"""One pass over the bytes of a file: checksums and values together, in pieces that stay in the processor's cache."""

from __future__ import annotations

import hashlib
import zlib
from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field

import torch

from hpcstab.doctor.contents import Contents, Record, StoredTensor
from hpcstab.doctor.measure import Measured

PIECE_BYTES = 1 << 21
"""Read, digested and looked at while it is in the cache: larger pieces are slower, smaller ones cost more calls."""


@dataclass
class Scanned:
    """What the pass found: values by tensor, records whose checksum differs, the digest where one was asked for."""

    values: dict[StoredTensor, Measured] = field(default_factory=dict)
    damaged: list[str] = field(default_factory=list)
    sha256: str | None = None


def scan(contents: Contents, tensors: Iterable[StoredTensor], *, sha256: bool = False, crc: bool = True) -> Scanned:
    """Read the file once, front to back.

    Args:
        tensors: whose values are looked at, each once; those that share memory are looked at one by one.
        sha256: digest the whole file, gaps between records too.
        crc: compare the format's own checksums, where it has any.
    """
    scanned = Scanned()
    by_record: dict[str, list[StoredTensor]] = defaultdict(list)
    for tensor in set(tensors):
        scanned.values[tensor] = Measured()
        if tensor.is_dense:
            by_record[tensor.record].append(tensor)
    reader = _Reader(contents, hashlib.sha256() if sha256 else None)
    with reader:
        for record in sorted(contents.records.values(), key=lambda each: each.start):
            wanted = sorted(by_record.pop(record.name, []), key=lambda each: each.first_byte)
            checked = record.crc if crc else None
            if not wanted and checked is None:
                continue
            if not reader.pass_over(record, wanted, scanned.values, checked):
                scanned.damaged.append(record.name)
        scanned.sha256 = reader.finish()
    with_gaps = [tensor for tensor in scanned.values if not tensor.is_dense]
    if with_gaps:  # what lies in the gaps is not theirs
        with contents.open() as file:
            for tensor in with_gaps:
                scanned.values[tensor].add(file.read(tensor).flatten())
    return scanned


class _Reader:
    """Reads forward only; with a digest every byte passes through it."""

    def __init__(self, contents: Contents, digest: hashlib._Hash | None) -> None:
        self._contents = contents
        self._digest = digest
        self._buffer = bytearray(PIECE_BYTES)
        self._view = memoryview(self._buffer)
        self._at = 0

    def __enter__(self) -> None:
        self._file = self._contents.path.open("rb", buffering=0)

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def pass_over(
        self, record: Record, wanted: list[StoredTensor], values: dict[StoredTensor, Measured], crc: int | None
    ) -> bool:
        """Look at the tensors of a record; whether its checksum is the right one, where it has one."""
        self._skip_to(record.start)
        end, found = record.start + record.num_bytes, 0
        while self._at < end:
            offset = self._at - record.start
            piece = self._read(min(PIECE_BYTES, end - self._at))
            if not piece:
                return False
            if crc is not None:
                found = zlib.crc32(piece, found)
            for tensor in wanted:
                _look(tensor, piece, offset, values[tensor])
        return crc is None or found == crc

    def finish(self) -> str | None:
        if self._digest is None:
            return None
        self._skip_to(self._contents.num_bytes)
        return self._digest.hexdigest()

    def _skip_to(self, place: int) -> None:
        if self._digest is None:
            self._file.seek(place)
            self._at = place
        while self._at < place and self._read(min(PIECE_BYTES, place - self._at)):
            pass

    def _read(self, num_bytes: int) -> memoryview:
        piece = self._view[: self._file.readinto(self._view[:num_bytes]) or 0]
        if self._digest is not None:
            self._digest.update(piece)
        self._at += len(piece)
        return piece


def _look(tensor: StoredTensor, piece: memoryview, offset: int, measured: Measured) -> None:
    """Measure what lies of a tensor in a piece that begins ``offset`` bytes into the record."""
    first = max(tensor.first_byte - offset, 0)
    last = min(tensor.first_byte + tensor.num_bytes - offset, len(piece))
    if first < last:
        measured.add(torch.frombuffer(piece[first:last], dtype=tensor.dtype))
