"""A real Slurm for a test session, and more of them for tests that need their own."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack

import pytest

from tests.lab.running_lab import RunningLab, lab_for_tests

NewLab = Callable[..., RunningLab]


@pytest.fixture(scope="session")
def lab() -> Iterator[RunningLab]:
    """One that runs, with accounting, for all tests: each leaves its queue empty and its nodes idle."""
    with lab_for_tests() as running:
        running.verb("up")
        yield running


@pytest.fixture
def new_lab() -> Iterator[NewLab]:
    """``new_lab("--user-signal")``: one more, for a test that needs its own; without switches it is not started."""
    with ExitStack() as stack:

        def make(*switches: str) -> RunningLab:
            running = stack.enter_context(lab_for_tests())
            if switches:
                running.verb("up", *switches)
            return running

        yield make
