"""The output of an attempt, in its log and where it went anyway."""

from __future__ import annotations

import contextlib
import io
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

_DRAIN_S = 5.0
# tee is a process of its own, so the last words of one that is killed or crashes in C are not lost;
# it ignores the signals that end a job, since they reach every process of it
_TEE = 'trap "" INT TERM HUP USR1 USR2; exec tee -a "$0"'


@contextlib.contextmanager
def teed_to(log: Path) -> Iterator[None]:
    """Append all that this process and its children print in the block to ``log`` as well.

    On file descriptors 1 and 2, so C libraries are heard too; both go on where standard output went.
    """
    _flush()
    tee = subprocess.Popen(["sh", "-c", _TEE, str(log)], stdin=subprocess.PIPE)
    assert tee.stdin is not None
    before = os.dup(1), os.dup(2)
    for descriptor in (1, 2):
        os.dup2(tee.stdin.fileno(), descriptor)
    tee.stdin.close()
    try:
        with _line_by_line():
            yield
    finally:
        for copy, descriptor in zip(before, (1, 2), strict=True):
            os.dup2(copy, descriptor)
            os.close(copy)
        with contextlib.suppress(subprocess.TimeoutExpired):
            # a child that still runs keeps the pipe open; tee ends with it
            tee.wait(_DRAIN_S)


@contextlib.contextmanager
def _line_by_line() -> Iterator[None]:
    """A pipe is buffered by the block; a log is read while it grows."""
    stream = sys.stdout
    before = stream.line_buffering if isinstance(stream, io.TextIOWrapper) else True
    if isinstance(stream, io.TextIOWrapper):
        stream.reconfigure(line_buffering=True)
    try:
        yield
    finally:
        _flush()
        if isinstance(stream, io.TextIOWrapper):
            stream.reconfigure(line_buffering=before)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        with contextlib.suppress(OSError, ValueError):
            stream.flush()
