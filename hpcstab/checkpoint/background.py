"""A thread that writes beside the training, one thing at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from threading import Event
from typing import Any

from hpcstab.errors import HpcstabError

RETRY_S = 30.0


@dataclass(frozen=True)
class Try:
    """What one try to write came to: its ``result``, or the ``error`` that stopped it."""

    number: int
    seconds: float
    result: Any = None
    error: str | None = None


class BackgroundWriter:
    """Does one piece of writing at a time.

    What fails is tried again every ``RETRY_S`` seconds, until somebody waits for its end: so a disk that was full for
    ten minutes costs no checkpoint, only its delay. The interpreter does not exit before a piece is done.
    """

    def __init__(self) -> None:
        self._running: Future[None] | None = None
        self._last_try = Event()
        self._tries: SimpleQueue[Try] = SimpleQueue()

    def begin(self, write: Callable[[], Any]) -> None:
        """Let the thread call ``write``; nothing else may be under way."""
        assert self._running is None, "the last one has not been waited for"
        self._last_try.clear()
        thread = ThreadPoolExecutor(1, "checkpoint")
        self._running = thread.submit(self._write, write)
        thread.shutdown(wait=False)  # it ends with its work: a process that forks has no idle thread

    def tries(self) -> Iterator[Try]:
        """The tries that came to an end since the last call."""
        while True:
            try:
                yield self._tries.get_nowait()
            except Empty:
                return

    def finish(self, may_try_on: Callable[[], bool] = lambda: False) -> str | None:
        """Wait until nothing is under way; why it could not be written, or None.

        Args:
            may_try_on: asked once a second as long as there is no success; after a no comes one last try.

        Raises:
            Exception: what ``write`` raised, where that is no HpcstabError.
        """
        running = self._running
        if running is None:
            return None
        while may_try_on() and not wait([running], timeout=1.0).done:
            pass
        self._last_try.set()
        try:
            running.result()
        except HpcstabError as error:
            return str(error)
        finally:
            if running.done():
                self._running = None
        return None

    def _write(self, write: Callable[[], Any]) -> None:
        number = 0
        while True:
            number += 1
            started, is_last = time.perf_counter(), self._last_try.is_set()
            try:
                result = write()
            except HpcstabError as error:
                self._tries.put(Try(number, time.perf_counter() - started, error=str(error)))
                if is_last:
                    raise
                self._last_try.wait(RETRY_S)
            else:
                self._tries.put(Try(number, time.perf_counter() - started, result))
                return
