"""A folder of the user's own, before anything is created or queued: is it there, and is there something to read?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from pathlib import Path

from hpcstab.config import FolderKind
from hpcstab.data.images import image_files
from hpcstab.data.registration_folder import subject_files
from hpcstab.data.scan_pairs import pair_files

_LISTED: Mapping[FolderKind, Callable[[Path], object]] = {
    "images": image_files,
    "subjects": subject_files,
    "pairs": pair_files,
}


def look_into(folder: Path, kind: FolderKind) -> None:
    """List what would be read; nothing is opened.

    Raises:
        DataError: no such folder, or nothing of the kind in it.
    """
    _LISTED[kind](folder)
