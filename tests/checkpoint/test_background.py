"""The thread that writes: one piece at a time, tried again while nobody waits, complete before the process ends."""

from __future__ import annotations

import subprocess
import sys
import threading
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.checkpoint import background
from hpcstab.checkpoint.background import BackgroundWriter
from hpcstab.errors import CheckpointError
from tests.conftest import REPOSITORY


def failing(times: int) -> Callable[[], int]:
    """Fails so many times, then returns how often it was called."""
    calls: list[None] = []

    def write() -> int:
        calls.append(None)
        if len(calls) <= times:
            raise CheckpointError(f"disk full {len(calls)}")
        return len(calls)

    return write


def test_the_caller_goes_on_while_it_writes() -> None:
    writer, may_end = BackgroundWriter(), threading.Event()
    writer.begin(lambda: may_end.wait(10.0))
    assert list(writer.tries()) == []
    may_end.set()
    assert writer.finish() is None
    (done,) = writer.tries()
    assert (done.number, done.result, done.error) == (1, True, None)
    assert writer.finish() is None  # nothing is under way any more


def test_a_disk_that_is_full_for_a_while_costs_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(background, "RETRY_S", 0.01)
    writer = BackgroundWriter()
    writer.begin(failing(3))
    assert writer.finish(lambda: True) is None
    tries = list(writer.tries())
    assert [done.error for done in tries] == ["disk full 1", "disk full 2", "disk full 3", None]
    assert tries[-1].result == 4


def test_who_waits_gets_one_last_try_and_then_the_reason() -> None:
    """Not the half minute until the next one."""
    writer = BackgroundWriter()
    writer.begin(failing(10))
    assert writer.finish() in ("disk full 1", "disk full 2")
    writer.begin(failing(0))
    assert writer.finish() is None


def test_a_mistake_of_ours_is_no_full_disk() -> None:
    writer = BackgroundWriter()
    writer.begin(lambda: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        writer.finish()
    writer.begin(failing(0))
    assert writer.finish() is None


def test_the_process_does_not_end_before_it_is_written(tmp_path: Path) -> None:
    code = (
        "import pathlib, time; from hpcstab.checkpoint.background import BackgroundWriter\n"
        f"BackgroundWriter().begin(lambda: (time.sleep(0.3), pathlib.Path({str(tmp_path / 'done')!r}).touch()))"
    )
    subprocess.run([sys.executable, "-c", code], check=True, cwd=REPOSITORY)
    assert (tmp_path / "done").exists()
