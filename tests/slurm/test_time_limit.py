"""Runs that come near their time limit, and one that is cancelled there."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.rundir import RunDir
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import (
    FOR_EVER,
    NUM_STEPS,
    SELDOM,
    assert_as_if_nothing_happened,
    planned_runs,
    submit_one,
    submit_runs,
)

pytestmark = pytest.mark.slurm


def test_runs_queue_themselves_again_and_one_is_cancelled_in_its_hold(
    lab: Lab, root: Path, uninterrupted: Callable[[], RunDir]
) -> None:
    """Evaluated so often that they do not end within the minute."""
    planned = planned_runs(2, evaluate_every=25)
    resumed, cancelled = submit_runs(root, planned, time_limit_min=1, signal_lead_s=30)
    for one in (resumed, cancelled):
        one.wait_for_hold("SIGUSR2")
        assert "s left: queued again" in one.printed
    cancelled.scancel()
    lab.slurm("scontrol", "update", f"jobid={resumed.job}", "TimeLimit=10")  # the rest may take more than a minute
    lab.verb("release", resumed.job)
    wait_for(lambda: len(resumed.attempts) == 2, "the second attempt", 60)
    assert resumed.wait_for_end() == "completed"
    first, second = resumed.attempts
    assert (first["reason"], second["reason"]) == ("SIGUSR2", "completed")
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert 0 < first["steps_gained"] < SELDOM, "cut between two checkpoints and within an epoch"
    assert first["steps_gained"] + second["steps_gained"] == NUM_STEPS
    assert_as_if_nothing_happened(resumed.run, uninterrupted())
    assert cancelled.state.state == "cancelled"
    assert lab.state(cancelled.job) == "CANCELLED"
    assert len(cancelled.attempts) == 1


def test_cancelled_in_its_last_minute_it_stays_cancelled(lab: Lab, root: Path) -> None:
    """All that a run asks itself before it queues itself again says yes, but for squeue's COMPLETING."""
    one = submit_one(root, FOR_EVER, time_limit_min=1, signal_lead_s=30)
    one.wait_for_steps(50)
    assert re.fullmatch(r"0:\d\d", lab.slurm("squeue", "--noheader", f"--jobs={one.job}", "--format=%L").strip())
    one.scancel()
    assert one.wait_for_end(60) == "cancelled"
    wait_for(lambda: lab.state(one.job) == "CANCELLED", "Slurm says so", 30)
    (attempt,) = one.attempts
    assert attempt["reason"] == "SIGTERM"
    assert attempt["steps_gained"] > 0
    assert "asked to stop and has saved" in one.printed
    assert "queued again" not in one.printed
