"""At most ``parallel_runs`` runs train at a time on one machine, first come first served.

A slot is a locked file: the kernel frees it however its holder ends, kill -9 included. Whoever waits
holds the queue's lock while it looks for a free slot; the others wait behind it, in order.
"""

from __future__ import annotations

import contextlib
import fcntl
import socket
import time
from collections.abc import Iterator
from pathlib import Path
from typing import IO

from hpcstab.launch.ledger import locked
from hpcstab.rundir import SUBMISSIONS, unwritable_root

_POLL_S = 0.1


@contextlib.contextmanager
def slot(root: Path, parallel_runs: int) -> Iterator[int]:
    """Wait for a slot of this machine under ``root`` and hold it; its number counts from 0."""
    folder = _folder(root)
    with locked(folder / "queue"):
        number, file = _wait_for_one(folder, parallel_runs)
    with file:
        yield number


def turn(root: Path) -> contextlib.AbstractContextManager[None]:
    """Held by a starter while it has jobs to start: a campaign starts after those submitted before it."""
    return locked(_folder(root) / "starters")


def _wait_for_one(folder: Path, parallel_runs: int) -> tuple[int, IO[bytes]]:
    while True:
        for number in range(parallel_runs):
            file = (folder / str(number)).open("ab")
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                return number, file
            except BlockingIOError:
                file.close()
        time.sleep(_POLL_S)


def _folder(root: Path) -> Path:
    folder = root / SUBMISSIONS / "slots" / socket.gethostname()
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise unwritable_root(root, error) from None
    return folder
