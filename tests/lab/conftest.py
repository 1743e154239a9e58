"""A real Slurm for a test session. ``from tests.lab.conftest import lab, new_lab`` gives it to another folder."""

from __future__ import annotations

import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import pytest

from tests.lab.running_lab import RunningLab, why_no_lab

NewLab = Callable[..., RunningLab]


@contextmanager
def _stopped_at_the_end() -> Iterator[RunningLab]:
    """A folder with a short name: Unix sockets lie in it."""
    reason = why_no_lab()
    if reason and os.environ.get("HPCSTAB_REQUIRE_LAB") != "1":
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    lab = RunningLab(folder)
    try:
        yield lab
    finally:
        if (folder / "lab.json").exists():
            lab.verb("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="session")
def lab() -> Iterator[RunningLab]:
    """One that runs, with accounting, for all tests: each leaves its queue empty and its nodes idle."""
    with _stopped_at_the_end() as running:
        running.verb("up")
        yield running


@pytest.fixture
def new_lab() -> Iterator[NewLab]:
    """``new_lab("--user-signal")``: one more, for a test that needs its own; without switches it is not started."""
    with ExitStack() as stack:

        def make(*switches: str) -> RunningLab:
            running = stack.enter_context(_stopped_at_the_end())
            if switches:
                running.verb("up", *switches)
            return running

        yield make
