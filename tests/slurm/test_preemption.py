"""A run is preempted, in each of the ways that Slurm has for it, and cancelled while it is."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

from hpcstab.rundir import RunDir
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import FOR_EVER, NUM_STEPS, SELDOM, OneRun, assert_as_if_nothing_happened, submit_one

pytestmark = pytest.mark.slurm


@dataclass(frozen=True)
class Preemption:
    """How Slurm preempts: the signal that the trainer gets first, and whether it is left some time after it."""

    lab: Lab
    partition: str
    signal: str
    has_grace: bool


@pytest.fixture(
    params=[
        "no-grace",
        "grace",
        pytest.param("user-signal", marks=pytest.mark.xdist_group("user-signal")),  # one lab for all of these
    ]
)
def preemption(request: pytest.FixtureRequest) -> Preemption:
    if request.param == "user-signal":
        return Preemption(request.getfixturevalue("user_signal_lab"), "preempt-grace", "SIGUSR2", True)
    lab = request.getfixturevalue("lab")
    if request.param == "grace":
        return Preemption(lab, "preempt-grace", "SIGTERM", True)
    return Preemption(lab, "preempt", "SIGTERM", False)


def wait_for_saved(one: OneRun) -> None:
    wait_for(lambda: one.attempts[0]["end"] is not None, "the state to be saved", 15)


def test_it_ends_as_an_uninterrupted_run(
    preemption: Preemption, root: Path, uninterrupted: Callable[[], RunDir]
) -> None:
    one = submit_one(root, partition=preemption.partition)
    one.wait_for_steps(50)
    preemption.lab.verb("preempt", one.job)
    one.wait_for_hold(preemption.signal)
    preemption.lab.verb("release", one.job)
    assert one.wait_for_end() == "completed"
    first, second = one.attempts
    assert (first["reason"], second["reason"]) == (preemption.signal, "completed")
    assert (first["restart_count"], second["restart_count"]) == (0, 1)
    assert 0 < first["steps_gained"] < SELDOM, "cut between two checkpoints and within an epoch"
    assert first["steps_gained"] + second["steps_gained"] == NUM_STEPS
    assert_as_if_nothing_happened(one.run, uninterrupted())


def test_cancelled_meanwhile_it_stays_cancelled(preemption: Preemption, root: Path) -> None:
    one = submit_one(root, time_limit_min=5, partition=preemption.partition)
    one.wait_for_steps(50)
    preemption.lab.verb("preempt", "--no-wait", one.job)
    wait_for_saved(one)
    one.scancel()
    assert one.wait_for_end(60) == "cancelled"
    wait_for(lambda: preemption.lab.state(one.job) == "CANCELLED", "Slurm says so", 30)
    (attempt,) = one.attempts
    assert attempt["reason"] == preemption.signal
    assert attempt["steps_gained"] > 0
    assert "queued again" not in one.printed


@pytest.fixture
def starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Each start of Python in a job adds a line to this file; the first goes no further."""
    path = tmp_path / "starts"
    monkeypatch.syspath_prepend(str(Path(__file__).with_name("slow_start")))  # jobs import what their submitter imports
    monkeypatch.setenv("HPCSTAB_TEST_STARTS", str(path))
    return path


def test_before_python_listens_it_starts_again(preemption: Preemption, root: Path, starts: Path) -> None:
    one = submit_one(root, num_steps=FOR_EVER, partition=preemption.partition)
    wait_for(starts.exists, "Python to start", 30)
    preemption.lab.verb("preempt", one.job)
    one.wait_for_state("queued")
    gained = [attempt["steps_gained"] for attempt in one.attempts]
    assert [steps > 0 for steps in gained] == [True] * preemption.has_grace, "what is left of the grace is used"
    preemption.lab.verb("release", one.job)
    one.wait_for_steps(sum(gained) + 50)
    assert (one.state.state, one.attempts[-1]["restart_count"]) == ("running", 1)
    again = ["restart 0"] if preemption.has_grace else []
    assert starts.read_text().splitlines() == ["restart 0", *again, "restart 1"]


def test_cancelled_before_python_listens_it_stays_cancelled(lab: Lab, root: Path, starts: Path) -> None:
    one = submit_one(root)
    wait_for(starts.exists, "Python to start", 30)
    one.scancel()
    assert one.wait_for_end(30) == "cancelled"
    wait_for(lambda: lab.state(one.job) == "CANCELLED", "Slurm says so", 30)
    assert one.attempts == []
    assert starts.read_text().splitlines() == ["restart 0"]
