"""Runs that come near their time limit, and one that is cancelled there."""

from __future__ import annotations

import re
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.rundir import RunDir
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import (
    FOR_EVER,
    NUM_STEPS,
    SELDOM,
    OneRun,
    assert_as_if_nothing_happened,
    planned_runs,
    submit_one,
    submit_runs,
)

pytestmark = pytest.mark.slurm


def set_time_limit(lab: Lab, one: OneRun, minutes: int) -> None:
    lab.slurm("scontrol", "update", f"jobid={one.job}", f"TimeLimit={minutes}")


def test_it_queues_itself_again_and_ends_as_an_uninterrupted_run(
    lab: Lab, root: Path, uninterrupted: Callable[[], RunDir]
) -> None:
    """One of two in an array. Its limit comes near once it trains, however slow it is to start; it is evaluated so
    often that it does not end in the half minute until Slurm looks."""
    one, other = submit_runs(root, planned_runs(2, evaluate_every=20), max_parallel=1, signal_lead_s=120)
    one.wait_for_steps(50)
    other.scancel()
    minutes = int((time.time() - one.attempts[0]["start"]) // 60)
    set_time_limit(lab, one, minutes + 2)
    one.wait_for_hold("SIGUSR2")
    assert "s left: queued again" in one.printed
    set_time_limit(lab, one, 60)
    lab.verb("release", one.job)
    wait_for(lambda: len(one.attempts) == 2, "the second attempt", 60)
    assert one.wait_for_end() == "completed"
    first, second = one.attempts
    assert (first["reason"], second["reason"]) == ("SIGUSR2", "completed")
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert 0 < first["steps_gained"] < SELDOM, "cut between two checkpoints and within an epoch"
    assert first["steps_gained"] + second["steps_gained"] == NUM_STEPS
    assert_as_if_nothing_happened(one.run, uninterrupted())
    assert (other.state.state, other.attempts) == ("cancelled", [])


def test_cancelled_in_its_last_minute_it_stays_cancelled(lab: Lab, root: Path) -> None:
    """All that a run asks itself before it queues itself again says yes, but for squeue's COMPLETING."""
    one = submit_one(root, FOR_EVER, time_limit_min=2, signal_lead_s=10)
    one.wait_for_steps(1)

    def is_last_minute() -> bool:
        left = lab.slurm("squeue", "--noheader", f"--jobs={one.job}", "--format=%L")
        return re.fullmatch(r"0:\d\d", left.strip()) is not None

    wait_for(is_last_minute, "the last minute", 90)
    one.scancel()
    assert one.wait_for_end(60) == "cancelled"
    wait_for(lambda: lab.state(one.job) == "CANCELLED", "Slurm says so", 30)
    (attempt,) = one.attempts
    assert attempt["reason"] == "SIGTERM"
    assert attempt["steps_gained"] > 0
    assert "asked to stop and has saved" in one.printed
    assert "queued again" not in one.printed


def test_cancelled_once_it_has_queued_itself_again_it_never_starts(lab: Lab, root: Path) -> None:
    one = submit_one(root, FOR_EVER, time_limit_min=1, signal_lead_s=30)
    one.wait_for_hold("SIGUSR2")
    one.scancel()
    assert one.wait_for_end(20) == "cancelled"
    assert lab.state(one.job) == "CANCELLED"
    assert "CANCELLED" in lab.verb("release", one.job, expect=2)
    assert len(one.attempts) == 1
