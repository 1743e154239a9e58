"""Python tracebacks in a log: which exception, and the last line of the user's own code that led to it."""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from hpcstab.explain.causes import CauseName

TRACEBACK = b"Traceback (most recent call last):"
_MAX_BYTES = 1 << 16
_BEFORE_BYTES = 200
_MAX_MESSAGE = 300
_FOLLOWS = (b"During handling of the above exception", b"direct cause of the following exception")
_PREFIX = re.compile(r"^(?:\[?(?:rank)?\d+\]?:\s?|\[[^\]]*\]\s?)+")
"""What torchrun and `srun --label` put before each line."""
_FRAME = re.compile(r'^\s+File "(?P<file>[^"]+)", line (?P<line>\d+), in (?P<function>.+)$')
_EXCEPTION = re.compile(r"^(?P<type>[A-Za-z_][\w.]*)(?::\s?(?P<message>.*))?$")
_LIBRARY = re.compile(r"site-packages|dist-packages|/lib/python3|/lib64/python3|^<frozen|/hpcstab/(?!models/)")
_LOADING = re.compile(r"torch/utils/data/|/hpcstab/data/|/datasets/")
_TYPES: dict[str, CauseName] = {
    "OutOfMemoryError": "out_of_memory",
    "MemoryError": "out_of_memory",
    "ModuleNotFoundError": "missing_module_or_environment",
    "ImportError": "missing_module_or_environment",
    "KeyboardInterrupt": "cancelled_by_user",
    "FileNotFoundError": "data_error",
    "UnidentifiedImageError": "data_error",
    "BadZipFile": "data_error",
    "UnpicklingError": "data_error",
    "DataError": "data_error",
    "FloatingPointError": "nonfinite_operation",
}
_MESSAGES: tuple[tuple[re.Pattern[str], CauseName], ...] = (
    (re.compile(r"(?:CUDA|HIP) out of memory|can't allocate memory|\[Errno 12\]"), "out_of_memory"),
    (
        re.compile(r"\[Errno (?:27|28|30|122)\]|No space left|quota exceeded|File too large|Read-only file system"),
        "disk_full_or_quota",
    ),
    (re.compile(r"is not installed|No module named"), "missing_module_or_environment"),
    (
        re.compile(r"returned nan|invalid values:.*nan|\bnan\b.*(?:loss|grad)|(?:loss|grad\w*) .*\bnan\b", re.S | re.I),
        "nonfinite_operation",
    ),
)


def cause_of_message(message: str) -> CauseName | None:
    """What the text of an error tells by itself."""
    return next((cause for pattern, cause in _MESSAGES if pattern.search(message)), None)


@dataclass(frozen=True)
class Frame:
    """One call: ``text`` is its line of source, where the traceback shows it."""

    file: str
    line: int
    function: str
    text: str


@dataclass(frozen=True)
class Traceback:
    """One exception, with the calls that led to it. ``follows``: it was raised while another one was handled."""

    line: int
    exception: str
    message: str
    frames: tuple[Frame, ...]
    follows: bool = False

    @property
    def own(self) -> Frame | None:
        """The last frame of the user's own code; the very last one where all is a library's."""
        own = [frame for frame in self.frames if not _LIBRARY.search(frame.file)]
        shown = own or list(self.frames)
        return shown[-1] if shown else None

    @property
    def cause(self) -> CauseName:
        """By the exception, then by where it was raised."""
        by_message = cause_of_message(self.message)
        if by_message is not None:
            return by_message
        known = _TYPES.get(self.exception.rpartition(".")[2])
        if known is not None:
            return known
        is_loading = any(_LOADING.search(frame.file) or frame.function == "__getitem__" for frame in self.frames)
        return "data_error" if is_loading else "crash_in_code"

    def __str__(self) -> str:
        return f"{self.exception}: {self.message}" if self.message else self.exception


def read_traceback(path: Path, line: int, offset: int) -> Traceback:
    """The traceback whose first line begins at ``offset`` in bytes, at line number ``line``."""
    with path.open("rb") as file:
        file.seek(max(0, offset - _BEFORE_BYTES))
        before = file.read(min(offset, _BEFORE_BYTES))
        text = file.read(_MAX_BYTES).decode(errors="replace")
    follows = any(words in before for words in _FOLLOWS)
    lines = [_PREFIX.sub("", each) for each in text.splitlines()]
    frames: list[Frame] = []
    for number, each in enumerate(lines[1:], 1):
        found = _FRAME.match(each)
        if found:
            source = lines[number + 1].strip() if number + 1 < len(lines) else ""
            frames.append(Frame(found["file"], int(found["line"]), found["function"], source))
        elif each and not each[0].isspace():
            return Traceback(line, *_exception(lines[number:]), tuple(frames), follows)
    return Traceback(line, "an exception", "its last lines are missing", tuple(frames), follows)


def first_of_chain(tracebacks: list[Traceback]) -> Traceback:
    """What the last exception began with: what was raised while it was handled is no cause."""
    for traceback in reversed(tracebacks):
        if not traceback.follows:
            return traceback
    return tracebacks[0]


def _exception(lines: list[str]) -> tuple[str, str]:
    """(type, message); of a message that begins on the next line, that line."""
    found = _EXCEPTION.match(lines[0])
    if found is None:
        return "an exception", lines[0][:_MAX_MESSAGE]
    message = found["message"] or ""
    if not message and lines[0].rstrip().endswith(":") and len(lines) > 1:
        message = lines[1]
    return found["type"], message.strip()[:_MAX_MESSAGE]
