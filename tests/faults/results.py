"""What one cell of the matrix gave, from what its ranks say and from the files of its run."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from hpcstab.metrics import read_events
from hpcstab.rundir import RunDir
from tests.faults.cells import STATE_SITES, Cell
from tests.faults.creators import expected_creator, named_creator
from tests.faults.run import Trained, run_dir_of
from tests.faults.settings import FAULT_STEP, is_of_the_scale

_ALARMS = ("step_refused", "state_nonfinite", "rescaled", "not_reproduced", "backoff", "halted")


@dataclass(frozen=True)
class Result:
    """One cell: ``told`` is the reason in the event, ``recovered`` that of all ranks."""

    cell: Cell
    detected: bool
    told: str
    device_latency: int | None
    host_latency: int | None
    ended: str
    recovered: bool
    creator: str
    creator_is_right: bool


def result_of(cell: Cell, root: Path, ranks: Sequence[Trained]) -> Result:
    """Look at a cell that was trained."""
    run = run_dir_of(root, cell)
    detected, told = _what_was_told(cell, run)
    agree = all((rank.ended, *_latencies(rank)) == (ranks[0].ended, *_latencies(ranks[0])) for rank in ranks)
    named = named_creator(cell, run)
    return Result(
        cell,
        detected=detected and agree,
        told=told,
        device_latency=ranks[0].device_latency,
        host_latency=ranks[0].host_latency,
        ended=ranks[0].ended,
        recovered=all(rank.recovered for rank in ranks),
        creator=str(named),
        creator_is_right=named == expected_creator(cell),
    )


def _latencies(trained: Trained) -> tuple[int | None, int | None]:
    return trained.device_latency, trained.host_latency


def _what_was_told(cell: Cell, run: RunDir) -> tuple[bool, str]:
    """(whether the fault was named, and nothing else, the reason that was given)."""
    alarms = [event for event in read_events(run.events_jsonl) if event["kind"] in _ALARMS]
    if is_of_the_scale(cell):
        found = _of_kind(alarms, "rescaled")
        return bool(found) and found == alarms, "rescaled"
    if cell.site in STATE_SITES:
        found = _of_kind(alarms, "state_nonfinite")
        return len(found) == 1 and found == alarms, "state"
    found = _of_kind(alarms, "step_refused")
    attempts = _of_kind(alarms, "rescaled")  # an fp16 overflow might be the scale's: that is tried first
    is_named = len(found) == 1 and found[0]["step"] == FAULT_STEP and len(alarms) == len(found) + len(attempts)
    return is_named, str(found[0]["data"]["reason"]) if found else "nothing"


def _of_kind(events: list[dict[str, Any]], kind: str) -> list[dict[str, Any]]:
    return [event for event in events if event["kind"] == kind]
