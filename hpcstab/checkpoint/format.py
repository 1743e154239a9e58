"""The one file format: a folder with a state file and a manifest that vouches for it.

    step_00000100/state.pt         torch, tensors and plain values only: loading it never runs code
    step_00000100/manifest.json    what it is, its size and SHA-256, and a checksum of the manifest itself

The folder is written aside, brought to disk and renamed, so that a reader sees all of it or nothing. One of the same
name is renamed aside before and removed after, so that a writer that is killed in between costs none of both.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import io
import json
import os
import platform
import shutil
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, BinaryIO, cast

import numpy as np
import torch
from torch import Tensor

from hpcstab.errors import CheckpointError

FORMAT_VERSION = 1
STATE = "state.pt"
MANIFEST = "manifest.json"
_ASIDE_SUFFIX = ".aside"
_OLD_SUFFIX = ".old"
_CHUNK_BYTES = 1 << 20
_BESIDE_BYTES = 1 << 18
"""Less than this is gathered first: handing it to another thread costs more than its digest."""
_LEFT_BYTES = 1 << 20
"""So much of a disk is left to the rows and events of the training that goes on beside a save."""


def write_checkpoint(folder: Path, state: Mapping[str, Any], facts: Mapping[str, Any]) -> None:
    """Write ``state`` with a manifest of ``facts`` as ``folder``; an error leaves nothing half-written.

    Raises:
        CheckpointError: the disk is full, or the place cannot be written.
    """
    aside = folder.with_name(f".{folder.name}{_ASIDE_SUFFIX}")
    old = folder.with_name(f".{folder.name}{_OLD_SUFFIX}")
    try:
        shutil.rmtree(aside, ignore_errors=True)
        _settle(old, folder)
        aside.mkdir(parents=True)
        memory = _memory_of(state)
        _require_room(aside, sum(memory.values()))
        with (aside / STATE).open("wb") as file, ThreadPoolExecutor(1) as beside:
            written = _Digesting(file, beside, memory)
            try:
                torch.save(dict(state), cast(BinaryIO, written))
            except RuntimeError as error:  # torch closes its file after an error, and tells what that came to instead
                raise written.error or error from None
            written.finish()
            _to_disk(aside / STATE)  # while the rest is digested
        (aside / MANIFEST).write_text(_manifest_text(written, facts), encoding="utf-8")
        for path in (aside / MANIFEST, aside):
            _to_disk(path)
        if folder.exists():
            folder.rename(old)
        aside.rename(folder)
        _to_disk(folder.parent)
        _settle(old, folder)
    except OSError as error:
        shutil.rmtree(aside, ignore_errors=True)
        with contextlib.suppress(OSError):
            _settle(old, folder)
        raise CheckpointError(
            f"{folder}: cannot be written: {error.strerror}; free space or choose another --root"
        ) from None


def read_manifest(folder: Path) -> dict[str, Any]:
    """The manifest of a checkpoint, its own checksum verified.

    Raises:
        CheckpointError: missing, unreadable, altered, or of another format version.
    """
    path = folder / MANIFEST
    try:
        text = path.read_text(encoding="utf-8")
        manifest = json.loads(text)
        manifest.pop("manifest_sha256")
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise CheckpointError(f"{path}: is no manifest: {error}") from None
    if text != _signed(manifest):  # its form too: 1E-5 for 1e-5 is a flipped bit, and equal as a number
        raise CheckpointError(f"{path}: was altered after it was written (checksum differs)")
    if manifest["format_version"] != FORMAT_VERSION:
        raise CheckpointError(f"{path}: has format {manifest['format_version']}; this version reads {FORMAT_VERSION}")
    return dict(manifest)


def read_checkpoint(folder: Path, device: torch.device | str = "cpu") -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, manifest), verified byte for byte before anything is loaded.

    Raises:
        CheckpointError: a file is missing, or differs from what was written.
    """
    manifest = read_manifest(folder)
    path = folder / STATE
    try:
        size, digest = path.stat().st_size, _file_digest(path)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read: {error.strerror}") from None
    if (size, digest) != (manifest["state_bytes"], manifest["state_sha256"]):
        raise CheckpointError(f"{path}: differs from what was written (size or SHA-256)")
    try:
        return torch.load(path, map_location=device, weights_only=True), manifest
    except Exception as error:
        raise CheckpointError(f"{path}: cannot be loaded: {str(error).splitlines()[0]}") from None


def discard(folder: Path) -> None:
    """Remove a checkpoint: its name first, so that a reader, or a writer after a kill, never meets half of it."""
    aside = folder.with_name(f".{folder.name}{_ASIDE_SUFFIX}")
    with contextlib.suppress(OSError):  # what stays is whole
        shutil.rmtree(aside, ignore_errors=True)
        folder.rename(aside)
        shutil.rmtree(aside, ignore_errors=True)


def remove_asides(folder: Path) -> None:
    """Remove what a killed writer left aside; a checkpoint that it was about to replace is there again.

    Raises:
        CheckpointError: that one cannot be brought back.
    """
    for path in folder.glob(f".*{_ASIDE_SUFFIX}"):
        shutil.rmtree(path, ignore_errors=True)
    for path in folder.glob(f".*{_OLD_SUFFIX}"):
        try:
            _settle(path, path.with_name(path.name.removeprefix(".").removesuffix(_OLD_SUFFIX)))
        except OSError as error:
            raise CheckpointError(f"{path}: cannot be renamed back: {error.strerror}") from None


def _memory_of(value: Any) -> dict[int, int]:
    """Address and size of the memory of all tensors in a nested value."""
    if isinstance(value, Tensor):
        storage = value.untyped_storage()
        return {storage.data_ptr(): storage.nbytes()}
    if isinstance(value, Mapping):
        value = list(value.values())
    found: dict[int, int] = {}
    for entry in value if isinstance(value, (list, tuple)) else ():
        found |= _memory_of(entry)
    return found


def _require_room(folder: Path, needed: int) -> None:
    """Refuse what will not fit before it has taken the last bytes from everybody; quotas are met when they are met."""
    free = shutil.disk_usage(folder).free
    if needed + _LEFT_BYTES > free:
        reason = f"{os.strerror(errno.ENOSPC)}, {needed / 1e6:,.1f} MB for {free / 1e6:,.1f} MB that are free"
        raise OSError(errno.ENOSPC, reason)


def _settle(old: Path, folder: Path) -> None:
    """``old`` was replaced by ``folder``, or is what ``folder`` has to be again."""
    if folder.exists():
        shutil.rmtree(old, ignore_errors=True)
    elif old.exists():
        old.rename(folder)


class _Digesting(io.RawIOBase):
    """Passes writes on and digests them: what is vouched for is what was meant, not what the disk gave back.

    torch writes to a file object front to back. To a path it would report a full disk as an internal RuntimeError, and
    here it does so where closing its file fails after that; ``error`` is the disk's. The digest is made in the thread
    ``beside``, from the ``memory`` (address: size) of the state itself, which outlives this; of what else is written it
    has a copy.
    """

    def __init__(self, file: BinaryIO, beside: ThreadPoolExecutor, memory: Mapping[int, int]) -> None:
        super().__init__()
        self._file, self._beside, self._memory = file, beside, memory
        self._gathered = bytearray()
        self.digest = hashlib.sha256()
        self.num_bytes = 0
        self.error: OSError | None = None

    def writable(self) -> bool:
        return True

    def write(self, data: Any) -> int:
        num_bytes = memoryview(data).nbytes
        try:
            self._file.write(data)
        except OSError as error:
            self.error = error
            raise
        self.num_bytes += num_bytes
        if num_bytes >= _BESIDE_BYTES and self._memory.get(np.frombuffer(data, np.uint8).ctypes.data) == num_bytes:
            self._hand_over()
            self._beside.submit(self.digest.update, data)
        else:
            self._gathered += data
            if len(self._gathered) >= _BESIDE_BYTES:
                self._hand_over()
        return num_bytes

    def finish(self) -> None:
        """Nothing is held back any more, neither from the file nor from the digest."""
        if self._gathered:
            self._hand_over()
        self._file.flush()

    def _hand_over(self) -> None:
        gathered, self._gathered = self._gathered, bytearray()
        self._beside.submit(self.digest.update, gathered)


def _manifest_text(written: _Digesting, facts: Mapping[str, Any]) -> str:
    return _signed(
        {
            "format_version": FORMAT_VERSION,
            "state_bytes": written.num_bytes,
            "state_sha256": written.digest.hexdigest(),
            "torch": torch.__version__,
            "cpu_capability": torch.backends.cpu.get_cpu_capability(),
            "machine": platform.machine(),
            "num_threads": torch.get_num_threads(),
            **facts,
        }
    )


def _signed(manifest: Mapping[str, Any]) -> str:
    """The text of a manifest, to the letter, with the checksum of what it says."""
    digest = hashlib.sha256(json.dumps(manifest, sort_keys=True, allow_nan=False).encode()).hexdigest()
    return json.dumps({**manifest, "manifest_sha256": digest}, indent=1, allow_nan=False) + "\n"


def _file_digest(path: Path) -> str:
    digest = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(_CHUNK_BYTES):
            digest.update(chunk)
    return digest.hexdigest()


def _to_disk(path: Path) -> None:
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
