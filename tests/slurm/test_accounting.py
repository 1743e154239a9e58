"""Status where sacct does not answer: slurmdbd is down, or there is none; also of jobs that squeue forgot."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcstab.launch.cancel import cancel
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import FOR_EVER, OneRun, planned_runs, submit_one, submit_runs

pytestmark = pytest.mark.slurm

FORGOTTEN_S = 90
"""slurmctld removes jobs older than MinJobAge once a minute."""


@contextmanager
def squeue_forgets(lab: Lab) -> Iterator[None]:
    """A job leaves squeue soon after its end, not after five minutes."""
    before = lab.slurm_conf.read_text()
    lab.configure(before + "MinJobAge=2\n")
    try:
        yield
    finally:
        lab.configure(before)


def assert_three_ends(lab: Lab, root: Path) -> None:
    """One run to its end, one cancelled while it runs and one while it waits; then squeue forgets all of them."""
    submitted = submit_runs(root, planned_runs(1)) + submit_runs(root, planned_runs(2, FOR_EVER), max_parallel=1)
    completed, cancelled, waiting = submitted
    for one in (completed, cancelled):
        one.wait_for_steps(50)
    assert states(submitted) == ["running", "running", "queued"]
    assert "sacct" not in {one.state.source for one in submitted}
    for one in (cancelled, waiting):
        cancel(one.run.run_id, root)
    ends = ["completed", "cancelled", "cancelled"]
    assert [one.wait_for_end() for one in submitted] == ends
    arrays = {one.job.partition("_")[0] for one in submitted}
    wait_for(lambda: not arrays & shown_arrays(lab), "squeue to forget them", FORGOTTEN_S)
    assert states(submitted) == ends
    assert [len(one.attempts) for one in submitted] == [1, 1, 0]


def shown_arrays(lab: Lab) -> set[str]:
    return set(lab.slurm("squeue", "--noheader", "--states=all", "--format=%A %F").split())


def states(runs: list[OneRun]) -> list[str]:
    return [one.state.state for one in runs]


def test_the_accounting_daemon_stops_midway(lab: Lab, root: Path) -> None:
    before = submit_one(root, FOR_EVER)
    before.wait_for_steps(50)
    lab.verb("accounting-off")
    try:
        with squeue_forgets(lab):
            assert before.state.state == "running"
            assert_three_ends(lab, root)
    finally:
        lab.verb("accounting-on")
    before.scancel()
    assert before.wait_for_end() == "cancelled"


@pytest.mark.xdist_group("user-signal")
def test_a_cluster_without_accounting(user_signal_lab: Lab, root: Path) -> None:
    with squeue_forgets(user_signal_lab):
        assert_three_ends(user_signal_lab, root)
