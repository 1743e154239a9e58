"""Changing the record of a campaign; what it holds and how it is read is in :mod:`hpcstab.state.ledger`."""

from __future__ import annotations

import contextlib
import fcntl
import time
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path

from hpcstab.config import NAME
from hpcstab.errors import EXIT_NO_ANSWER, EXIT_WRONG_REQUEST, LaunchError
from hpcstab.rundir import SUBMISSIONS, unwritable_root, write_json
from hpcstab.state.ledger import Ledger, read_ledger, submission_folder


def claim_campaign(root: Path, name: str) -> str:
    """A campaign id that nobody else has, ``<name>_<YYYYMMDD_HHMMSS>``; its folder is the claim.

    Raises:
        RunError: the root cannot be written.
    """
    if not NAME.fullmatch(name):
        raise LaunchError(f"campaign name {name!r}: names are {NAME.pattern}", exit_code=EXIT_WRONG_REQUEST)
    now = datetime.now().replace(microsecond=0)
    while True:
        campaign = f"{name}_{now:%Y%m%d_%H%M%S}"
        folder = root / SUBMISSIONS / campaign
        try:
            folder.parent.mkdir(parents=True, exist_ok=True)
            folder.mkdir()
            return campaign
        except FileExistsError as error:
            if not folder.is_dir():
                raise unwritable_root(root, error) from None
            now += timedelta(seconds=1)
        except OSError as error:
            raise unwritable_root(root, error) from None


def write_ledger(path: Path, ledger: Ledger) -> None:
    """Write the record; whoever changes one that exists uses :func:`updating`."""
    write_json(path, ledger.model_dump(mode="json"))


@contextlib.contextmanager
def updating(path: Path) -> Iterator[Ledger]:
    """The record, to be changed; written when the block ends, unless it raises. No other change comes between."""
    with locked(submission_folder(path) / "lock"):
        ledger = read_ledger(path)
        yield ledger
        write_ledger(path, ledger)


@contextlib.contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold a lock file, in the order in which it was asked for; the kernel frees it when the holder dies.

    Raises:
        LaunchError: the file system has no locks, or cannot be written.
    """
    try:
        file = path.open("ab")
    except OSError as error:
        raise _cannot_lock(path, error) from None
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX)
        except OSError as error:
            raise _cannot_lock(path, error) from None
        yield


def mark_cancelled(path: Path, indexes: set[int]) -> Ledger:
    """Ask for jobs to end; a request that stands already keeps its time."""
    with updating(path) as ledger:
        for job in ledger.jobs:
            if job.index in indexes and job.cancelled_at is None:
                job.cancelled_at = time.time()
    return ledger


def _cannot_lock(path: Path, error: OSError) -> LaunchError:
    return LaunchError(
        f"{path}: cannot be locked: {error.strerror}; choose a --root on a file system with locks",
        exit_code=EXIT_NO_ANSWER,
    )
