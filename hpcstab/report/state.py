"""The state of a run from its own files: the trainer's word, or what the silence after it means."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

ENDED = ("completed", "diverged", "halted", "failed")
SILENCE_S = 120.0
"""A running trainer writes its status at least every 10 s; after this long without one it is lost."""


def derive_state(status: Mapping[str, Any], attempts: Sequence[Mapping[str, Any]], now: float) -> str:
    """``queued, running, completed, diverged, halted, failed, stopped`` or ``lost``.

    ``stopped``: a signal or the scheduler ended the attempt, and the run can be resumed.
    """
    state = status.get("state")
    if state in ENDED:
        return str(state)
    last = attempts[-1] if attempts else None
    if last is not None and last.get("end") is not None:
        return "failed" if last.get("reason") == "failed" else "stopped"
    if state == "running":
        return "running" if now - float(status.get("time") or 0.0) <= SILENCE_S else "lost"
    if last is None:
        return "queued"
    return "running" if now - float(last.get("start") or 0.0) <= SILENCE_S else "lost"
