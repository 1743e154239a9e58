"""The cache of fetched data: one folder a source, whole or absent, every file verified whenever it is read.

$HPCSTAB_DATA/<package>-<version>/<file name>
"""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path, PurePosixPath

from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError

_ASIDE = ".fetching-"
_ASIDE_AGE_S = 86_400.0  # older ones were left by a killed fetch


def data_folder() -> Path:
    """HPCSTAB_DATA, else ``hpcstab`` in the user's cache folder."""
    named = os.environ.get("HPCSTAB_DATA")
    if named:
        return Path(named).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "hpcstab"


def read_member(source: Source, name: str) -> bytes:
    """The content of one fetched file, verified against its pinned SHA-256.

    Raises:
        DataError: it is not there, cannot be read or is damaged; the message says what fetches it.
    """
    path = data_folder() / source.folder / name
    try:
        content = path.read_bytes()
    except FileNotFoundError:
        raise DataError(
            f"{name} of {source.release} is not in {data_folder()}: run `hpcstab data fetch {_fetched_by(source)}`"
            " where there is a network, or set HPCSTAB_DATA to the folder that has it"
        ) from None
    except OSError as error:
        raise DataError(
            f"{path}: cannot be read: {error.strerror}; HPCSTAB_DATA names the folder of the data"
        ) from None
    if sha256_of(content) != source.members[source.path_of(name)]:
        raise DataError(
            f"{path}: is damaged, its SHA-256 is not the pinned one: `hpcstab data fetch {source.package}` replaces it"
        )
    return content


def is_fetched(source: Source) -> bool:
    """Is every file of the source in the cache, and as pinned?"""
    try:
        for path in source.members:
            read_member(source, PurePosixPath(path).name)
    except DataError:
        return False
    return True


def require(sources: Iterable[Source]) -> None:
    """Raise a DataError that says what to fetch, where a file of a source is not in the cache; none is read."""
    absent = missing(sources)
    if absent:
        commands = " and ".join(f"`hpcstab data fetch {name}`" for name in dict.fromkeys(map(_fetched_by, absent)))
        raise DataError(
            f"not in {data_folder()}: {', '.join(source.release for source in absent)}; run {commands} where there is a"
            " network, or set HPCSTAB_DATA to the folder that has the data"
        )


def missing(sources: Iterable[Source]) -> list[Source]:
    """The sources of which a file is not in the cache, without reading any."""
    root = data_folder()
    return [s for s in sources if not all((root / s.folder / PurePosixPath(path).name).is_file() for path in s.members)]


@contextlib.contextmanager
def room_aside() -> Iterator[Path]:
    """A folder in the cache for what is not whole yet; it is gone afterwards, whatever happened.

    Raises:
        DataError: the cache cannot be written, or its disk is full.
    """
    root = data_folder()
    try:
        root.mkdir(parents=True, exist_ok=True)
        _remove_leftovers(root)
        with tempfile.TemporaryDirectory(prefix=_ASIDE, dir=root, ignore_cleanup_errors=True) as aside:
            yield Path(aside)
    except OSError as error:
        raise DataError(
            f"data folder '{root}' cannot be written: {error.strerror or error}; free space there, or set HPCSTAB_DATA"
        ) from None


def keep(source: Source, contents: Mapping[str, bytes], aside: Path) -> Path:
    """Put the source's files (path inside the archive -> content) into the cache, all at once; its folder there."""
    fresh, kept = aside / "fresh", data_folder() / source.folder
    fresh.mkdir()
    for path, content in contents.items():
        (fresh / PurePosixPath(path).name).write_bytes(content)
    if kept.exists():
        kept.rename(aside / "replaced")
    try:
        fresh.rename(kept)
    except OSError:
        if not kept.is_dir():  # else another fetch was faster, with the same bytes
            raise
    return kept


def sha256_of(content: bytes) -> str:
    return hashlib.sha256(content).hexdigest()


def _remove_leftovers(root: Path) -> None:
    for path in root.glob(f"{_ASIDE}*"):
        with contextlib.suppress(OSError):
            if time.time() - path.stat().st_mtime > _ASIDE_AGE_S:
                shutil.rmtree(path)


def _fetched_by(source: Source) -> str:
    return source.package if source.extra else source.models[0]
