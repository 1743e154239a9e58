"""A log of anybody's training, read once from front to end in bounded memory, however long it or a line of it is.

Whole blocks are searched at once, and only around a hit for lines; of each pattern the first and the last hit are
kept. Tracebacks and values that are not finite are looked for everywhere, the words of an end where a log ends.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from hpcstab.errors import RunError
from hpcstab.explain.log_patterns import (
    IS_START_VALUE,
    IS_TRAINED,
    NONFINITE,
    NONFINITE_NEEDLES,
    PATTERNS,
    STEP,
    Pattern,
)
from hpcstab.explain.tracebacks import TRACEBACK, Traceback, read_traceback

BLOCK_BYTES = 1 << 20
END_BYTES = 1 << 26
"""How much of a log counts as its end."""
MAX_LINE_BYTES = 2000
LOOK_BACK_BYTES = 1 << 16
_MAX_TRACEBACKS = 3


@dataclass(frozen=True)
class Hit:
    """A line that tells: ``line`` counts from 1; ``offset`` in bytes, of its start."""

    line: int
    offset: int
    text: str


@dataclass
class Sighting:
    """All hits of one pattern: the first, the last, how many."""

    pattern: Pattern
    first: Hit
    last: Hit
    count: int = 1


@dataclass(frozen=True)
class NonfiniteLine:
    """The first line that shows a value that is not finite."""

    hit: Hit
    name: str
    value: str
    step: int | None
    is_trained: bool


@dataclass
class LogScan:
    """What a log holds. ``tail``: its last lines that are not empty, as hits without offsets."""

    path: Path
    num_bytes: int = 0
    num_lines: int = 0
    sightings: dict[Pattern, Sighting] = field(default_factory=dict)
    nonfinite: NonfiniteLine | None = None
    tracebacks: list[Traceback] = field(default_factory=list)
    tail: list[str] = field(default_factory=list)


def scan_log(path: Path) -> LogScan:
    """Read a log to its end.

    Raises:
        RunError: it cannot be read, or is no text.
    """
    scan = LogScan(path)
    starts: list[Hit] = []
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            if b"\0" in file.read(4096):
                raise RunError(f"{path}: is no text, so it is no log; why takes a RUN, a log or a checkpoint")
        for block, offset, line in _blocks(path):
            _search(scan, size, starts, block, offset, line)
        scan.tail = _tail(path, scan.num_bytes)
        scan.tracebacks = [read_traceback(path, hit.line, hit.offset) for hit in starts]
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None
    return scan


def _blocks(path: Path) -> Iterator[tuple[bytes, int, int]]:
    """(block, its offset, number of its first line): whole lines, as far as they fit a block."""
    with path.open("rb") as file:
        kept, offset, line = b"", 0, 1
        while data := file.read(BLOCK_BYTES):
            data = kept + data
            end = data.rfind(b"\n") + 1 or len(data)  # a line longer than a block is cut
            block, kept = data[:end], data[end:]
            yield block, offset, line
            offset += len(block)
            line += block.count(b"\n")
        if kept:
            yield kept, offset, line


def _search(scan: LogScan, size: int, starts: list[Hit], block: bytes, offset: int, line: int) -> None:
    scan.num_bytes = offset + len(block)
    scan.num_lines = line - 1 + block.count(b"\n") + (not block.endswith(b"\n"))
    for at in _positions(block, (TRACEBACK,)):
        starts.append(_hit(block, at, offset, line))
        del starts[1:-_MAX_TRACEBACKS]  # the first, and the last ones
    for pattern in PATTERNS if scan.num_bytes > size - END_BYTES else ():
        for at in _positions(block, pattern.needles):
            start, end = _line_around(block, at)
            if pattern.regex is None or pattern.regex.search(block[start:end]):
                _keep(scan, pattern, _hit(block, at, offset, line))
    if scan.nonfinite is None or not scan.nonfinite.is_trained:
        _look_for_nonfinite(scan, block, offset, line)


def _positions(block: bytes, needles: tuple[bytes, ...]) -> Iterator[int]:
    """Where one of the needles is, each line once for each of them."""
    for needle in needles:
        at = block.find(needle)
        while at >= 0:
            yield at
            at = block.find(needle, _line_around(block, at)[1])


def _keep(scan: LogScan, pattern: Pattern, hit: Hit) -> None:
    seen = scan.sightings.setdefault(pattern, Sighting(pattern, hit, hit, 0))
    seen.count += 1
    seen.first = min(seen.first, hit, key=lambda each: each.line)
    seen.last = max(seen.last, hit, key=lambda each: each.line)


def _look_for_nonfinite(scan: LogScan, block: bytes, offset: int, line: int) -> None:
    """Keep the first value that is not finite; one of the loss goes before one of anything else."""
    for at in sorted(_positions(block, NONFINITE_NEEDLES)):
        start, end = _line_around(block, at)
        for found in NONFINITE.finditer(block[start:end]):
            name = found["name"]
            is_trained = bool(IS_TRAINED.search(name))
            is_word = not found["between"].strip() and not is_trained  # "returned nan" is a sentence
            if is_word or IS_START_VALUE.search(name) or not (is_trained or scan.nonfinite is None):
                continue
            step = _step_near(block[max(0, start - LOOK_BACK_BYTES) : start], block[start:end])
            value = found["value"].decode().lower()
            scan.nonfinite = NonfiniteLine(_hit(block, start, offset, line), name.decode(), value, step, is_trained)
            if is_trained:
                return


def _step_near(before: bytes, text: bytes) -> int | None:
    """The step on the line itself, else the last one that was named before it."""
    for place in (text, before):
        steps = [found["step"] or found["bar"] for found in STEP.finditer(place)]
        if steps:
            return int(steps[0] if place is text else steps[-1])
    return None


def _hit(block: bytes, at: int, offset: int, line: int) -> Hit:
    start, end = _line_around(block, at)
    text = block[start:end].decode(errors="replace").strip()
    return Hit(line + block.count(b"\n", 0, start), offset + start, text)


def _line_around(block: bytes, at: int) -> tuple[int, int]:
    """A progress bar rewrites its line with carriage returns: each state of it counts as a line here."""
    low, high = max(0, at - MAX_LINE_BYTES), at + MAX_LINE_BYTES
    start = max(block.rfind(b"\n", low, at), block.rfind(b"\r", low, at), low - 1) + 1
    ends = [end for end in (block.find(b"\n", at, high), block.find(b"\r", at, high)) if end >= 0]
    return start, min(ends, default=min(len(block), high))


def _tail(path: Path, num_bytes: int) -> list[str]:
    with path.open("rb") as file:
        file.seek(max(0, num_bytes - LOOK_BACK_BYTES))
        text = file.read(LOOK_BACK_BYTES).decode(errors="replace")
    return [line.strip()[:MAX_LINE_BYTES] for line in re.split(r"[\r\n]+", text) if line.strip()][-3:]
