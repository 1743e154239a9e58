"""Waiting for what takes a moment, with a limit and a reason."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

from hpcstab.launch.queue import RunState, run_states


def wait_for(condition: Callable[[], object], what: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for: {what}"
        time.sleep(0.3)


def wait_for_end(root: Path, campaign: str, patience_s: float) -> list[RunState]:
    """The states once all runs have ended."""
    wait_for(lambda: not any(state.is_open for state in run_states(root, campaign)), f"end of {campaign}", patience_s)
    return run_states(root, campaign)
