"""A .zip or .tar.gz of small files with a MANIFEST that vouches for each: written whole, unpacked without trust."""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import os
import stat
import tarfile
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import IO, Any

from hpcstab.errors import EXIT_WRONG_REQUEST, RunError

MANIFEST = "MANIFEST.json"
MAX_FILES = 10_000
MAX_BYTES = 2_000_000_000
"""More is no bundle: an archive of a few kilobytes can unpack to petabytes."""
_CHUNK_BYTES = 1 << 20
SUFFIXES = (".zip", ".tar.gz", ".tgz")


@dataclass(frozen=True)
class Entry:
    """A file of a bundle: its name in it, with slashes, and its content or where that is."""

    name: str
    content: bytes | Path

    def read(self) -> bytes:
        return self.content if isinstance(self.content, bytes) else self.content.read_bytes()


def write_archive(path: Path, entries: Sequence[Entry], facts: Mapping[str, Any]) -> int:
    """Write all entries and their MANIFEST, aside first; the number of bytes of the archive.

    Raises:
        RunError: the name is not that of an archive, is taken (exit code 2), or cannot be written.
    """
    if not path.name.endswith(SUFFIXES):
        raise RunError(f"--bundle {path}: the name ends with {' or '.join(SUFFIXES)}", exit_code=EXIT_WRONG_REQUEST)
    if path.exists():
        raise RunError(f"--bundle {path}: is there already; choose another name", exit_code=EXIT_WRONG_REQUEST)
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    files: dict[str, dict[str, Any]] = {}
    try:
        with contextlib.closing(_writer(aside, path.name)) as archive:
            for entry in entries:
                content = entry.read()
                files[entry.name] = {"num_bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
                _add(archive, entry.name, content)
            _add(archive, MANIFEST, json.dumps({**facts, "files": files}, indent=1).encode())
        aside.replace(path)
        return path.stat().st_size
    except OSError as error:
        raise RunError(f"--bundle {path}: cannot be written: {error.strerror}") from None
    finally:
        aside.unlink(missing_ok=True)


def unpack_archive(path: Path, into: Path) -> dict[str, Any]:
    """Unpack below ``into``, each file checked against the MANIFEST, which is returned.

    Raises:
        RunError: it is no bundle, was altered, or holds something that has no business in one.
    """
    digests: dict[str, str] = {}
    try:
        with contextlib.closing(_opened(path)) as archive:
            left = MAX_BYTES
            for number, (name, file) in enumerate(_members(archive, path)):
                if number >= MAX_FILES:
                    raise RunError(f"{path}: holds more than {MAX_FILES} files; it is no bundle of hpcstab")
                target = into / _safe(name, path)
                target.parent.mkdir(parents=True, exist_ok=True)
                digests[name], num_bytes = _copy(file, target, left, path)
                left -= num_bytes
        manifest = json.loads((into / MANIFEST).read_text(encoding="utf-8"))
        claimed = {name: facts["sha256"] for name, facts in manifest["files"].items()}
    except (OSError, zipfile.BadZipFile, tarfile.TarError, EOFError, ValueError, KeyError, AttributeError) as error:
        raise RunError(f"{path}: is no bundle that `hpcstab why RUN --bundle` wrote, or is damaged: {error}") from None
    digests.pop(MANIFEST)
    if wrong := [name for name in {*claimed, *digests} if claimed.get(name) != digests.get(name)]:
        raise RunError(f"{path}: was altered after it was written: {sorted(wrong)[0]}")
    return dict(manifest)


def _safe(name: str, path: Path) -> PurePosixPath:
    """The name as a path below the target, and nowhere else."""
    parts = PurePosixPath(name)
    if parts.is_absolute() or ".." in parts.parts or "\\" in name or "\0" in name or not parts.parts:
        raise RunError(
            f"{path}: holds the name {name!r}, which leads out of its folder; nothing of it is to be trusted"
        )
    return parts


def _copy(file: IO[bytes], target: Path, limit: int, path: Path) -> tuple[str, int]:
    digest, num_bytes = hashlib.sha256(), 0
    with target.open("xb") as out:
        while data := file.read(_CHUNK_BYTES):
            num_bytes += len(data)
            if num_bytes > limit:
                raise RunError(f"{path}: unpacks to more than {MAX_BYTES:,} bytes; it is no bundle of hpcstab")
            digest.update(data)
            out.write(data)
    return digest.hexdigest(), num_bytes


def _members(archive: zipfile.ZipFile | tarfile.TarFile, path: Path) -> Iterator[tuple[str, IO[bytes]]]:
    """Regular files only: a link could lead anywhere."""
    if isinstance(archive, zipfile.ZipFile):
        for info in archive.infolist():
            if info.is_dir() or stat.S_ISLNK(info.external_attr >> 16):
                raise RunError(f"{path}: holds {info.filename!r}, which is no file; it is no bundle of hpcstab")
            with archive.open(info) as file:
                yield info.filename, file
        return
    for member in archive:
        content = archive.extractfile(member) if member.isreg() else None
        if content is None:
            raise RunError(f"{path}: holds {member.name!r}, which is no file; it is no bundle of hpcstab")
        yield member.name, content


def _opened(path: Path) -> zipfile.ZipFile | tarfile.TarFile:
    return zipfile.ZipFile(path) if path.name.endswith(".zip") else tarfile.open(path, "r:gz")


def _writer(aside: Path, name: str) -> zipfile.ZipFile | tarfile.TarFile:
    if name.endswith(".zip"):
        return zipfile.ZipFile(aside, "x", zipfile.ZIP_DEFLATED)
    return tarfile.open(aside, "x:gz")


def _add(archive: zipfile.ZipFile | tarfile.TarFile, name: str, content: bytes) -> None:
    if isinstance(archive, zipfile.ZipFile):
        archive.writestr(name, content)
        return
    info = tarfile.TarInfo(name)
    info.size, info.mtime = len(content), int(time.time())
    archive.addfile(info, io.BytesIO(content))
