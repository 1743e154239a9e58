"""Other verbs, asked in processes of their own: a replay that hangs or is killed for memory ends no story.

They load torch, which this room does without.
"""

from __future__ import annotations

import json
import subprocess
import sys
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Asked:
    """What a verb answered with ``--json``; None with the reason where it did not."""

    answer: Any = None
    reason: str = ""


class Question:
    """A verb at work. ``limit_s``: how long it may take."""

    def __init__(self, *words: str) -> None:
        self._words = words
        self._process = subprocess.Popen(
            [sys.executable, "-m", "hpcstab", *words, "--json"],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            stdin=subprocess.DEVNULL,
            text=True,
            errors="replace",
        )

    def wait(self, limit_s: float) -> Asked:
        """Its answer, or why there is none."""
        try:
            output, errors = self._process.communicate(timeout=limit_s)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.communicate()
            return Asked(reason=f"`hpcstab {' '.join(self._words)}` took more than {limit_s:.0f} s")
        code = self._process.returncode
        if code < 0:
            return Asked(reason=f"`hpcstab {' '.join(self._words)}` was killed with signal {-code}")
        try:
            return Asked(json.loads(output))
        except ValueError:
            said = errors.strip().splitlines() or [f"exit code {code}"]
            return Asked(reason=said[-1].removeprefix("hpcstab: "))
