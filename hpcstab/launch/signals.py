"""Signals as a request to stop, which the trainer reads between two steps.

with StopSignals() as signals:
    run_attempt(run, stop_requested=signals.requested)
"""

from __future__ import annotations

import contextlib
import signal
import time
from collections.abc import Iterator
from types import FrameType, TracebackType
from typing import Any

# USR2: Slurm and submitit announce the time limit or a preemption with it; NCCL takes USR1
_STOPPING = (signal.SIGTERM, signal.SIGINT, signal.SIGUSR2)
TIME_LIMIT = "time_limit"


def hold_back() -> None:
    """Let stopping signals wait until :class:`StopSignals` is entered; the kernel remembers them."""
    signal.pthread_sigmask(signal.SIG_BLOCK, _STOPPING)


class StoppedError(Exception):
    """A signal came while there was nothing to finish."""


class StopSignals:
    """Takes the stopping signals while it is entered, from submitit's handlers too: those requeue or ignore.

    The first reason to stop stays. A second Ctrl-C interrupts at once.

    ``ignored_afterwards``: for a process that has only to write its result when it is left; nothing is to stop then.
    """

    def __init__(self, *, ignored_afterwards: bool = False) -> None:
        self._ignored_afterwards = ignored_afterwards
        self._reason: str | None = None
        self._deadline: float | None = None
        self._interrupts = False
        self._handlers_before: dict[signal.Signals, Any] = {}

    def __enter__(self) -> StopSignals:
        self._handlers_before = {number: signal.signal(number, self._on_signal) for number in _STOPPING}
        signal.pthread_sigmask(signal.SIG_UNBLOCK, _STOPPING)  # those that were held back come now
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for number, handler in self._handlers_before.items():
            after = signal.SIG_IGN if self._ignored_afterwards else handler
            signal.signal(number, after if after is not None else signal.SIG_DFL)

    def requested(self) -> str | None:
        """Why to stop: the name of a signal, ``time_limit``, or None."""
        if self._reason is None and self._deadline is not None and time.monotonic() > self._deadline:
            self._reason = TIME_LIMIT
        return self._reason

    def set_time_limit(self, seconds: float) -> None:
        """Ask to stop in so many seconds."""
        self._deadline = time.monotonic() + seconds

    @contextlib.contextmanager
    def interrupting(self) -> Iterator[None]:
        """In this block a signal raises :class:`StoppedError`, since there is no step to wait for."""
        self._interrupts = True
        try:
            if self._reason is not None:
                raise StoppedError(self._reason)
            yield
        finally:
            self._interrupts = False

    def _on_signal(self, number: int, frame: FrameType | None) -> None:
        if self._reason is not None and number == signal.SIGINT:
            raise KeyboardInterrupt
        self._reason = self._reason or signal.Signals(number).name
        if self._interrupts:
            raise StoppedError(self._reason)
