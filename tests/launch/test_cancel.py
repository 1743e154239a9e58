"""Cancelling: request first, then the signal, to the right process only; a queued run never trains."""

from __future__ import annotations

import signal
from pathlib import Path

import pytest

from hpcstab.errors import LaunchError, RunError
from hpcstab.launch.cancel import cancel
from hpcstab.launch.job_body import run_job
from hpcstab.launch.ledger import mark_cancelled
from hpcstab.rundir import RunDir, read_attempts
from hpcstab.state.ledger import ledger_path, read_ledger
from tests.conftest import MakeRun
from tests.launch.conftest import Submit, states, wait_for_end, wait_until
from tests.launch.test_ledger import make_ledger


def running_waiting_and_not_started(submit_fake: Submit, root: Path) -> str:
    """A campaign with one run in each of the three places where a cancel can find it."""
    ledger = submit_fake("0=wait,1=wait,2=wait", [0, 1, 2], parallel_runs=1)
    path = ledger_path(root, ledger.campaign)
    wait_until(lambda: states(root, ledger.campaign)[0] == "running", "the first run")
    wait_until(lambda: read_ledger(path).jobs[1].process is not None, "the job ahead")
    return ledger.campaign


def test_a_whole_campaign(submit_fake: Submit, root: Path) -> None:
    campaign = running_waiting_and_not_started(submit_fake, root)
    results = cancel(campaign, root)
    assert all(result.asked for result in results)
    assert results[2].outcome == "taken from the queue"
    assert [state.state for state in wait_for_end(root, campaign)] == ["cancelled"] * 3
    ledger = read_ledger(ledger_path(root, campaign))
    assert all(job.cancelled_at is not None for job in ledger.jobs)
    attempts = [read_attempts(RunDir(root / job.run_id)) for job in ledger.jobs]
    assert [len(records) for records in attempts] == [1, 0, 0], "what only waited has no attempt"
    assert (attempts[0][0]["reason"], attempts[0][0]["steps_gained"]) == ("SIGTERM", 1)
    again = cancel(campaign, root)
    assert {(result.asked, result.outcome) for result in again} == {(False, "nothing to cancel: cancelled")}


def test_one_run_and_the_others_go_on(submit_fake: Submit, root: Path) -> None:
    campaign = running_waiting_and_not_started(submit_fake, root)
    jobs = read_ledger(ledger_path(root, campaign)).jobs
    for index in (2, 1, 0):
        (result,) = cancel(jobs[index].run_id.rsplit("/", 1)[1], root)
        assert (result.run_id, result.asked) == (jobs[index].run_id, True)
        wait_until(lambda ended=index: states(root, campaign)[ended] == "cancelled", f"the end of run {index}")
        assert states(root, campaign)[:index] == ["running", "queued"][:index]


def test_the_request_counts_where_the_signal_was_lost(make_run: MakeRun, root: Path) -> None:
    """A signal can come before the job listens; it then finds the request in the ledger."""
    run, path = make_run(), make_ledger(root)
    mark_cancelled(path, {1})
    assert run_job(str(run.path), str(path), 1) == "cancelled"
    assert read_attempts(run) == []
    assert [job.process for job in read_ledger(path).jobs] == [None] * 3


def test_what_has_ended_is_left_alone(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=complete,1=crash", [0, 1])
    wait_for_end(root, ledger.campaign)
    results = cancel(ledger.campaign, root)
    assert [result.outcome for result in results] == ["nothing to cancel: completed", "nothing to cancel: lost"]
    assert all(job.cancelled_at is None for job in read_ledger(ledger_path(root, ledger.campaign)).jobs)


def test_a_run_that_ignores_the_request_stays_running_until_it_is_killed(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=hang", [0])
    wait_until(lambda: states(root, ledger.campaign) == ["running"], "the run")
    cancel(ledger.campaign, root)
    assert states(root, ledger.campaign) == ["running"]
    (job,) = read_ledger(ledger_path(root, ledger.campaign)).jobs
    assert job.process is not None
    job.process.send_signal(signal.SIGKILL)
    assert [state.state for state in wait_for_end(root, ledger.campaign)] == ["cancelled"]


@pytest.mark.parametrize("what", ["nothing", "swae3d_20260101_000000", "../../etc"])
def test_nothing_matches(root: Path, what: str) -> None:
    with pytest.raises(RunError, match="no run matches") as caught:
        cancel(what, root)
    assert caught.value.exit_code == 2


def test_an_empty_name_is_not_the_only_run(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=wait", [0])
    with pytest.raises(LaunchError, match="wants a run or a campaign"):
        cancel("", root)
    assert set(states(root, ledger.campaign)) <= {"queued", "running"}
