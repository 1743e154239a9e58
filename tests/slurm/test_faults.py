"""A run is requeued and cancelled in its hold, its node fails, it is suspended, the controller goes away."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.launch.cancel import cancel
from hpcstab.rundir import RunDir
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import (
    FOR_EVER,
    NUM_STEPS,
    assert_as_if_nothing_happened,
    planned_runs,
    submit_one,
    submit_runs,
)

pytestmark = pytest.mark.slurm

SILENCE_S = 65
"""Longer than a running trainer is ever silent without a word about it."""


def test_a_requeue_by_an_operator(lab: Lab, root: Path, uninterrupted: Callable[[], RunDir]) -> None:
    one = submit_one(root)
    one.wait_for_steps(50)
    lab.verb("requeue", one.job)
    one.wait_for_hold("SIGTERM")
    lab.verb("release", one.job)
    assert one.wait_for_end() == "completed"
    assert [attempt["reason"] for attempt in one.attempts] == ["SIGTERM", "completed"]
    assert_as_if_nothing_happened(one.run, uninterrupted())


def test_a_failing_node(lab: Lab, root: Path, uninterrupted: Callable[[], RunDir]) -> None:
    """Nobody is told: the run goes on from its last checkpoint, and trains some steps again."""
    every = 300
    one = submit_one(root, checkpoint_every=every)
    one.wait_for_steps(every + 50)
    node = one.attempts[0]["node"]
    lab.verb("node-down", node)
    try:
        done = one.num_steps()
        one.wait_for_hold("no end recorded")
        lab.wait(lambda: "NODE_FAIL" in lab.accounted_states(one.job), "the attempt is accounted")
        lab.verb("release", one.job)
        assert one.wait_for_end() == "completed"
    finally:
        lab.verb("node-up", node)
    first, second = one.attempts
    assert (first["end"], first["node"]) == (None, node)
    assert (second["reason"], second["restart_count"]) == ("completed", 1)
    resumed_at = NUM_STEPS - second["steps_gained"]
    assert resumed_at == done // every * every, "the last checkpoint"
    assert_as_if_nothing_happened(one.run, uninterrupted())


def test_a_suspended_run_is_not_lost(lab: Lab, root: Path, uninterrupted: Callable[[], RunDir]) -> None:
    one = submit_one(root)
    one.wait_for_steps(50)
    lab.verb("suspend", one.job)
    assert (one.state.state, one.state.detail) == ("running", "Slurm says SUSPENDED")
    done = one.num_steps()
    wait_for(lambda: one.silence_s() > SILENCE_S, "a long silence", SILENCE_S + 10)
    assert (one.state.state, one.state.detail) == ("running", "Slurm says SUSPENDED")
    assert one.num_steps() == done
    lab.verb("resume", one.job)
    assert one.wait_for_end() == "completed"
    assert len(one.attempts) == 1
    assert_as_if_nothing_happened(one.run, uninterrupted())


def test_while_the_controller_is_away_the_last_answer_stays(lab: Lab, root: Path) -> None:
    """A run trains to its end meanwhile; the one that waits behind it starts when the controller is back."""
    # long enough to outlive the stop of a controller on a busy machine, which takes seconds
    first, second = submit_runs(root, planned_runs(2, num_steps=4 * NUM_STEPS), max_parallel=1)
    first.wait_for_steps(50)
    assert [one.state.state for one in (first, second)] == ["running", "queued"]
    lab.verb("controller-off")
    try:
        before = second.state
        assert (before.state, before.source) == ("queued", "squeue")
        assert first.state.state == "running"
        assert first.wait_for_end() == "completed"
        after = second.state
        assert (after.state, after.source, after.detail) == (before.state, before.source, before.detail)
        assert after.age_s > before.age_s + 3, "its answer has an age"
    finally:
        lab.verb("controller-on")
    second.wait_for_steps(1)
    assert cancel(second.run.run_id, root)[0].asked, "it starts when the controller is back"
    assert second.wait_for_end() == "cancelled"
    assert [len(one.attempts) for one in (first, second)] == [1, 1]
    wait_for(lambda: lab.state(first.job) == "COMPLETED", "Slurm knows of the end that it did not see", 60)


@pytest.mark.parametrize("by_hand", [True, False], ids=["scancel", "hpcstab-cancel"])
def test_cancelled_in_the_hold_it_never_starts(lab: Lab, root: Path, by_hand: bool) -> None:
    one = submit_one(root, FOR_EVER)
    one.wait_for_steps(50)
    lab.verb("requeue", one.job)
    one.wait_for_hold("SIGTERM")
    if by_hand:
        one.scancel()
    else:
        (cancelled,) = cancel(one.run.run_id, root)
        assert cancelled.outcome == f"taken from the queue (job {one.job})"
    assert one.wait_for_end(20) == "cancelled"
    assert lab.state(one.job) == "CANCELLED"
    assert "CANCELLED" in lab.verb("release", one.job, expect=2)
    assert len(one.attempts) == 1
