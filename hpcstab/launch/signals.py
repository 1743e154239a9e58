"""Signals as a request to stop, which the trainer reads between two steps."""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType

# USR2: Slurm and submitit announce the time limit or a preemption with it; NCCL takes USR1
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
TIME_LIMIT = "time_limit"


class Stopped(Exception):
    """A signal came while the job was only waiting."""


class StopRequest:
    """Called, it says why to stop: the name of a signal, ``time_limit``, or None.

    The first reason stays. A second Ctrl-C interrupts at once.
    """

    def __init__(self) -> None:
        self._reason: str | None = None
        self._deadline: float | None = None
        self._interrupts = False

    def __call__(self) -> str | None:
        if self._reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self._reason = TIME_LIMIT
        return self._reason

    def set_time_limit(self, seconds: float) -> None:
        """Ask to stop in so many seconds."""
        self._deadline = time.monotonic() + seconds

    @contextlib.contextmanager
    def listening(self) -> Iterator[None]:
        """Take the signals, from submitit's handlers too, which would requeue or ignore them."""
        before = {number: signal.signal(number, self._on_signal) for number in _STOPPING}
        try:
            yield
        finally:
            for number, handler in before.items():
                signal.signal(number, handler if handler is not None else signal.SIG_DFL)

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """In this block a signal raises :class:`Stopped`, since there is no step to wait for."""
        self._interrupts = True
        try:
            if self._reason is not None:
                raise Stopped(self._reason)
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = self._reason or signal.Signals(number).name
        if self._interrupts:
            raise Stopped(self._reason)
