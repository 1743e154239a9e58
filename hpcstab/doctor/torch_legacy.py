"""The two formats that torch.save had before zip: a row of pickles and bytes, and before that a tar archive."""

from __future__ import annotations

import io
import struct
import tarfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import torch

from hpcstab.doctor.contents import Contents, Record, StoredTensor
from hpcstab.doctor.pickled import Description, Trouble, read_pickle
from hpcstab.doctor.rebuilt import StoredStorage
from hpcstab.doctor.recognise import unreadable

_NUM_PREFACES = 3
"""Pickles before the one that counts: magic number, protocol, facts about the machine."""


def read_legacy(path: Path) -> Contents:
    """The format of torch before 1.6, and of ``_use_new_zipfile_serialization=False``."""
    contents = Contents("torch.save file before 1.6", path, path.stat().st_size)
    try:
        with path.open("rb") as file:
            for _ in range(_NUM_PREFACES):
                _read(contents, file)
            start = file.tell()
            described = _read(contents, file)
            contents.records["pickle"] = Record("pickle", start, file.tell() - start)
            contents.pickled = described.pickled
            contents.tree = described.tree
            for key in _read(contents, file).tree:
                contents.records[str(key)] = _storage_record(file, str(key), described.storages[str(key)].dtype)
    except Trouble as trouble:
        contents.findings += trouble.findings
    except (KeyError, TypeError, struct.error) as error:
        contents.findings.append(unreadable("damaged_pickle", f"its list of storages is damaged ({error!r})"))
    return contents


def _read(contents: Contents, file: BinaryIO, objects: Mapping[str, Any] | None = None) -> Description:
    """The next pickle; what there is to say about loading it is said whatever it was for."""
    described = read_pickle(file, str, objects)
    contents.findings += described.findings
    return described


def _storage_record(file: BinaryIO, name: str, dtype: torch.dtype) -> Record:
    """Number of elements as int64, then the elements."""
    (num_values,) = struct.unpack("<q", file.read(8))
    record = Record(name, file.tell(), num_values * dtype.itemsize)
    if num_values < 0 or record.start + record.num_bytes > Path(file.name).stat().st_size:
        raise Trouble(unreadable("truncated", f"is cut off in the bytes of storage {name}"))
    file.seek(record.num_bytes, io.SEEK_CUR)
    return record


def read_tar(path: Path) -> Contents:
    """The format of torch before 0.1.10: members ``storages``, ``tensors`` and ``pickle``."""
    contents = Contents("torch.save file before 0.2 (tar)", path, path.stat().st_size)
    try:
        with tarfile.open(path, "r:") as archive, path.open("rb") as file:
            places = {member.name: member.offset_data for member in archive if member.isfile()}
            file.seek(places["storages"])
            storages = _tar_storages(contents, file)
            file.seek(places["tensors"])
            tensors = _tar_tensors(contents, file, storages)
            file.seek(places["pickle"])
            contents.tree = _read(contents, file, tensors).tree
    except Trouble as trouble:
        contents.findings += trouble.findings
    except (tarfile.TarError, KeyError, TypeError, ValueError, struct.error) as error:
        contents.findings.append(unreadable("truncated", f"is a tar archive that is cut off or not of torch ({error})"))
    return contents


def _tar_storages(contents: Contents, file: BinaryIO) -> dict[str, StoredStorage]:
    storages = {}
    for _ in range(int(_read(contents, file).tree)):
        key, _location, dtype = _read(contents, file).tree
        contents.records[str(key)] = _storage_record(file, str(key), dtype)
        storages[str(key)] = StoredStorage(str(key), dtype)
    for view, root, offset, _num_values in _read(contents, file).tree:
        storages[str(view)] = StoredStorage(str(root), storages[str(root)].dtype, int(offset))
    return storages


def _tar_tensors(contents: Contents, file: BinaryIO, storages: dict[str, StoredStorage]) -> dict[str, Any]:
    tensors: dict[str, Any] = {}
    for _ in range(int(_read(contents, file).tree)):
        key, storage_key, _type = _read(contents, file).tree
        num_axes, _ = struct.unpack("<ii", file.read(8))
        numbers = struct.unpack(f"<{2 * num_axes + 1}q", file.read(8 * (2 * num_axes + 1)))
        storage = storages[str(storage_key)]
        shape, stride = numbers[:num_axes], numbers[num_axes : 2 * num_axes]
        tensors[str(key)] = StoredTensor(storage.dtype, shape, stride, storage.record, storage.first + numbers[-1])
    return tensors
