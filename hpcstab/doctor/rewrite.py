"""A copy of a file with some of its bytes changed, and nothing else: no pickle is loaded, none is written anew.

New values go where the old ones lie. The state of a parameter is dropped from an optimizer by one more entry at the
end of the pickled dict of all states: its key again, with an empty dict, and all that torch.optim makes of that is a
state that begins anew. (What was pickled for it stays in the file, unreachable.)
"""

from __future__ import annotations

import os
import pickle
import struct
import zipfile
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, BinaryIO

import torch
from torch import Tensor

from hpcstab.doctor.contents import Contents, Record, StoredTensor, TensorFile

_COPY_BYTES = 1 << 20
_LOCAL_HEADER_BYTES = 30
_ZIP64_EXTRA_BYTES = 20
_NEEDS_ZIP64 = 1 << 31
_ALIGNMENT = 64


@dataclass
class Edits:
    """What changes, by place in the original: bytes instead of others, and bytes that come in between."""

    instead: dict[int, bytes] = field(default_factory=dict)
    between: dict[int, bytes] = field(default_factory=dict)

    def set_values(self, contents: Contents, file: TensorFile, tensor: StoredTensor, values: Tensor) -> None:
        """Write ``values`` where ``tensor`` lies; what lies in its gaps stays."""
        stored = file.read(tensor)
        stored.copy_(values)
        flat = stored.as_strided((tensor.extent,), (1,)).contiguous()
        self.instead[contents.place(tensor)] = flat.view(torch.uint8).numpy().tobytes()

    def set_float(self, contents: Contents, number: float, value: float) -> bool:
        """Write ``value`` where the float object ``number`` was read; False where it is not known where that is."""
        place = contents.pickled.floats.get(id(number)) if contents.pickled else None
        if contents.pickled is None or place is None:
            return False
        self.instead[contents.pickled.offset + place] = struct.pack(">d", value)
        return True

    def empty_entry(self, contents: Contents, entries: dict[Any, Any], key: object) -> bool:
        """Let ``entries[key]`` be an empty dict; False where it is not known how to write that."""
        pickled, pickled_key = contents.pickled, _pickled_key(key)
        end = pickled.ends.get(id(entries)) if pickled else None
        if pickled is None or end is None or pickled_key is None:
            return False
        text = pickled_key + pickle.EMPTY_DICT + pickle.SETITEM
        place = pickled.offset + end.place
        self.between[place] = self.between.get(place, b"") + text
        if end.frame_length_at is not None:
            at = pickled.offset + end.frame_length_at
            (length,) = struct.unpack("<Q", self.instead.get(at) or _bytes_at(contents, at, 8))
            self.instead[at] = struct.pack("<Q", length + len(text))
        return True


def write_edited(contents: Contents, edits: Edits, out: Path) -> None:
    """Write the edited copy; in a zip each record gets the checksum of its new bytes.

    Raises:
        OSError: it cannot be written.
    """
    with contents.path.open("rb") as source, out.open("wb") as target:
        if contents.is_zip:
            _write_zip(contents, edits, source, target)
        else:
            for piece in _edited(source, Record("file", 0, contents.num_bytes), edits):
                target.write(piece)
        target.flush()
        os.fsync(target.fileno())


def _write_zip(contents: Contents, edits: Edits, source: BinaryIO, target: BinaryIO) -> None:
    """The same records in the same order, each aligned as torch does it, so that it can be mapped into memory."""
    with zipfile.ZipFile(source) as original, zipfile.ZipFile(target, "w") as archive:
        for old in original.infolist():
            record = contents.records.get(old.filename)
            if record is None:  # compressed: code of a TorchScript archive, no tensor
                archive.writestr(old, original.read(old), old.compress_type)
                continue
            new = zipfile.ZipInfo(old.filename, old.date_time)
            large = record.num_bytes >= _NEEDS_ZIP64
            before = target.tell() + _LOCAL_HEADER_BYTES + len(old.filename.encode()) + (large and _ZIP64_EXTRA_BYTES)
            padding = -(before + 4) % _ALIGNMENT
            new.extra = struct.pack("<HH", 0x4246, padding) + b"Z" * padding  # "FB", as torch pads
            with archive.open(new, "w", force_zip64=large) as entry:
                for piece in _edited(source, record, edits):
                    entry.write(piece)


def _edited(source: BinaryIO, record: Record, edits: Edits) -> Iterator[bytes]:
    """The new bytes of a record, piece by piece."""
    at, end = record.start, record.start + record.num_bytes
    for place in sorted(place for place in edits.between if at <= place <= end):
        yield from _overwritten(source, at, place, edits)
        yield edits.between[place]
        at = place
    yield from _overwritten(source, at, end, edits)


def _overwritten(source: BinaryIO, start: int, end: int, edits: Edits) -> Iterator[bytes]:
    """The bytes of the source from ``start`` to ``end``, with what comes instead of some of them."""
    inside = [(place, text) for place, text in edits.instead.items() if place < end and place + len(text) > start]
    source.seek(start)
    while start < end and (piece := bytearray(source.read(min(_COPY_BYTES, end - start)))):
        for place, text in inside:
            first, last = max(place, start), min(place + len(text), start + len(piece))
            if first < last:
                piece[first - start : last - start] = text[first - place : last - place]
        start += len(piece)
        yield bytes(piece)


def _pickled_key(key: object) -> bytes | None:
    """In the opcodes that torch's weights_only reader knows."""
    if isinstance(key, int):
        return pickle.BININT + struct.pack("<i", key)
    if isinstance(key, str):
        text = key.encode()
        return pickle.BINUNICODE + struct.pack("<I", len(text)) + text
    return None


def _bytes_at(contents: Contents, place: int, num_bytes: int) -> bytes:
    with contents.path.open("rb") as file:
        file.seek(place)
        return file.read(num_bytes)
