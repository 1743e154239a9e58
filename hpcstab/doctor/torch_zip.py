"""The zip format of torch.save: where its records lie, and what its pickle describes."""

from __future__ import annotations

import io
import struct
import zipfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hpcstab.doctor.contents import Contents, Record
from hpcstab.doctor.pickled import Trouble, read_pickle
from hpcstab.doctor.recognise import unreadable

_LOCAL_HEADER_BYTES = 30
_BROKEN = (zipfile.BadZipFile, NotImplementedError, ValueError, EOFError, OverflowError, struct.error)
"""All that zipfile raises for a table of contents with a flipped bit."""


def read_zip(path: Path) -> Contents:
    """A file of torch.save, a Lightning checkpoint or a TorchScript archive, without its tensors' bytes."""
    contents = Contents("torch.save file", path, path.stat().st_size, is_zip=True)
    try:
        with path.open("rb") as file, zipfile.ZipFile(file) as archive:
            entries = archive.infolist()
            for entry in entries:
                if entry.compress_type == zipfile.ZIP_STORED:  # TorchScript compresses its code
                    contents.records[entry.filename] = _record(file, entry)
            names = (entry.filename for entry in entries)
            name = next((n for n in names if n.endswith("/data.pkl") or n == "data.pkl"), None)
            if name is None:
                contents.findings.append(
                    unreadable("no_pickle", "is a zip archive without data.pkl: not of torch.save")
                )
                return contents
            _read_description(contents, file, name)
        _ask_torch(path, [entry.filename.removeprefix(name.removesuffix("data.pkl")) for entry in entries])
    except _BROKEN as error:
        text = f"is cut off or damaged: its table of contents, at the end of the file, is not there ({error})"
        contents.findings.append(unreadable("truncated", text))
    except Trouble as trouble:
        contents.findings += trouble.findings
    return contents


def _ask_torch(path: Path, names: Sequence[str]) -> None:
    """torch checks more of the table of contents than Python does, and what it refuses nobody can load."""
    try:
        reader: Any = torch._C.PyTorchFileReader(str(path))
        for name in names:
            reader.get_record_offset(name)
    except RuntimeError as error:
        reason = str(error).partition(". ")[0]
        raise Trouble(unreadable("damaged_header", f"its table of contents is damaged ({reason})")) from None


def _record(file: BinaryIO, entry: zipfile.ZipInfo) -> Record:
    """Where the bytes of an entry begin: the header before them has a name and padding of its own length."""
    file.seek(entry.header_offset)
    header = file.read(_LOCAL_HEADER_BYTES)
    name_bytes, extra_bytes = int.from_bytes(header[26:28], "little"), int.from_bytes(header[28:30], "little")
    if header[:4] != b"PK\x03\x04" or file.read(name_bytes) != entry.orig_filename.encode():
        raise Trouble(unreadable("damaged_header", f"is damaged: the header before '{entry.filename}' is not its own"))
    start = entry.header_offset + _LOCAL_HEADER_BYTES + name_bytes + extra_bytes
    return Record(entry.filename, start, entry.file_size, entry.CRC)


def _read_description(contents: Contents, file: BinaryIO, name: str) -> None:
    root = name.removesuffix("data.pkl")
    order = contents.records.get(f"{root}byteorder")
    if order is not None and _bytes(file, order) == b"big":
        raise Trouble(unreadable("big_endian", "was written on a big-endian machine: load and save it again there"))
    if f"{root}constants.pkl" in contents.records:
        contents.kind = "TorchScript archive"
    if name not in contents.records:
        text = "was packed anew with compression, which torch.save does not use: load it and save it again"
        raise Trouble(unreadable("compressed", text))
    record = contents.records[name]
    pickled = read_pickle(io.BytesIO(_bytes(file, record)), lambda key: f"{root}data/{key}")
    contents.tree = pickled.tree
    contents.findings += pickled.findings
    contents.pickled = replace(pickled.pickled, offset=record.start)
    if isinstance(contents.tree, dict) and "pytorch-lightning_version" in contents.tree:
        contents.kind = "Lightning checkpoint"


def _bytes(file: BinaryIO, record: Record) -> bytes:
    file.seek(record.start)
    return file.read(record.num_bytes)
