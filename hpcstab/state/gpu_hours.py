"""GPU-hours of a run: over all its attempts, the GPUs that it had times the hours that it had them.

An attempt without an end counts to now while it runs, else to its last heartbeat; where another attempt followed and
took its place in status.json, to its last event. So a killed one counts too little, by at most one cadence.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcstab.errors import RunError
from hpcstab.metrics import read_events
from hpcstab.rundir import RunDir, read_json
from hpcstab.state.evidence import Evidence, is_of, number

Attempt = Mapping[str, Any]


def gpu_hours(seen: Evidence, is_running: bool, now: float) -> float | None:
    """None where no attempt had a GPU; what cannot be read counts as nothing."""
    if seen.attempt is None:
        return None
    hours = [
        count * max(0.0, _end(attempt, seen, is_running, now) - start) / 3600
        for attempt in [*_earlier(seen.run, seen.attempt), seen.attempt]
        if (count := _num_gpus(attempt, seen)) and (start := number(attempt.get("start"))) is not None
    ]
    return sum(hours) if hours else None


def _earlier(run: RunDir, newest: Attempt) -> list[Attempt]:
    """The attempts before the newest: there are seldom any, and then nothing is read."""
    if newest.get("attempt") == 1:
        return []
    found: list[Attempt] = []
    for attempt in run.attempt_numbers()[:-1]:
        try:
            found.append(read_json(run.attempt_json(attempt)) or {})
        except RunError:
            continue
    return found


def _num_gpus(attempt: Attempt, seen: Evidence) -> int:
    """What the attempt was shown; where it does not say, what its campaign asked for."""
    devices = attempt.get("devices")
    if isinstance(devices, list):
        return len(devices)
    return seen.ledger.resources.gpus_per_run if seen.ledger is not None else 0


def _end(attempt: Attempt, seen: Evidence, is_running: bool, now: float) -> float:
    """Until when the attempt is known to have had its GPUs; 0 where nothing tells."""
    end = number(attempt.get("end"))
    if end is not None:
        return end
    if attempt is not seen.attempt:
        return _last_event(seen.run, attempt)
    if is_running:
        return now
    return (number(seen.status.get("time")) or 0.0) if seen.status and is_of(seen.status, attempt) else 0.0


def _last_event(run: RunDir, attempt: Attempt) -> float:
    try:
        events = [event for event in read_events(run.events_jsonl) if isinstance(event, dict)]
    except (RunError, OSError, ValueError):
        return 0.0
    times = [number(event.get("time")) for event in events if is_of(event, attempt)]
    return max((time for time in times if time is not None), default=0.0)
