"""Which format a file has, by its first bytes and never by its name."""

from __future__ import annotations

from pathlib import Path
from typing import Literal

from hpcstab.doctor.findings import Finding

Format = Literal["zip", "legacy", "tar", "safetensors", "pickle"]
_LEGACY_MAGIC = bytes.fromhex("6cfc9c46f9206aa85019")  # torch.serialization.MAGIC_NUMBER as the pickle spells it
_HEAD_BYTES = 512
_NOT_A_CHECKPOINT = (
    (b"version https://git-lfs", "lfs_pointer", "is a Git LFS pointer, not the file itself: run `git lfs pull`"),
    (b"<!doctype html", "html", "is an HTML page, not a checkpoint: the download needs a login or another address"),
    (b"<html", "html", "is an HTML page, not a checkpoint: the download needs a login or another address"),
    (b"<?xml", "html", "is an XML page, not a checkpoint: most likely the error message of a download"),
    (b"\x1f\x8b", "gzip", "is compressed with gzip: `gunzip` it first"),
    (b"\x28\xb5\x2f\xfd", "zstd", "is compressed with zstd: `unzstd` it first"),
    (b"\x89HDF", "hdf5", "is an HDF5 file (Keras?), not one of PyTorch"),
    (b"GGUF", "gguf", "is a GGUF file of llama.cpp, not one of PyTorch"),
)


def recognise(path: Path) -> Format | Finding:
    """The format of a file, or the finding that says what it is instead."""
    size = path.stat().st_size
    with path.open("rb") as file:
        head = file.read(_HEAD_BYTES)
    if not size:
        return unreadable("empty", "is empty: nothing was written, or the disk was full")
    if not head.strip(b"\0"):
        return unreadable("zeros", "begins with nothing but zeros: the file system lost what was written last")
    for start, code, text in _NOT_A_CHECKPOINT:
        if head.lstrip(b"\xef\xbb\xbf \t\r\n")[: len(start)].lower() == start.lower():
            return unreadable(code, text)
    if head[:4] == b"PK\x03\x04":
        return "zip"
    if head[257:262] == b"ustar":
        return "tar"
    if _LEGACY_MAGIC in head[:32]:
        return "legacy"
    if head[8:9] == b"{" and int.from_bytes(head[:8], "little") < 100_000_000:
        return "safetensors"
    if head[:1] in (b"\x80", b"(", b"]", b"}", b"c"):
        return "pickle"
    return unreadable("unknown_format", f"is no format of PyTorch or safetensors; it begins with {head[:8]!r}")


def unreadable(code: str, text: str) -> Finding:
    """The finding of a file that nothing more can be said about."""
    return Finding(code, "unreadable", "file", "", text)
