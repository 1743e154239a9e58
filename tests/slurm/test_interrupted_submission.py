"""A submission that is killed around sbatch, for real: its jobs are found by name and train, and never come twice."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcstab.launch.cancel import cancel
from hpcstab.launch.ledger import updating
from hpcstab.launch.queue import run_states
from hpcstab.launch.scheduler import job_answers
from hpcstab.rundir import RunDir, read_attempts
from hpcstab.state.ledger import Ledger, ledger_path, read_ledger, read_ledgers
from hpcstab.state.slurm import SETTLED_S
from tests.slurm.conftest import Lab, wait_for, wait_for_end

pytestmark = pytest.mark.slurm

Interrupt = Callable[..., Ledger]


@pytest.fixture
def interrupt(lab: Lab, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Interrupt]:
    """Submit, hang before or after the real sbatch, and kill -9 all that took part; the ledger that is left."""
    sbatch, folder, reached = shutil.which("sbatch"), tmp_path / "bin", tmp_path / "reached"
    folder.mkdir()
    children: list[subprocess.Popen[bytes]] = []

    def submit_and_kill(when: str, *settings: str) -> Ledger:
        real = f'{sbatch} "$@" || exit 1' if when == "after sbatch" else ""
        script = folder / "sbatch"
        script.write_text(
            f"#!/bin/sh\n{real}\necho $PPID $$ > {reached}.new\nmv {reached}.new {reached}\nexec sleep 60\n"
        )
        script.chmod(0o755)
        command = ["submit", "swae3d", "--scale", "tiny", "--variants", "before", "--seeds", "0-1", "--cluster", "lab"]
        more = [word for setting in settings for word in ("--set", setting)]
        child = subprocess.Popen(
            [sys.executable, "-m", "hpcstab", *command, *more, "--root", str(root), "--no-wait"],
            env={**os.environ, "PATH": f"{folder}:{os.environ['PATH']}"},
            start_new_session=True,
        )
        children.append(child)
        wait_for(reached.exists, "sbatch", 30)
        child.kill()
        for pid in map(int, reached.read_text().split()):  # python -m hpcstab.launch.slurm, and its sbatch
            os.kill(pid, signal.SIGKILL)
        child.wait()
        (ledger,), problems = read_ledgers(root)
        assert not problems
        assert [job.job_id for job in ledger.jobs] == [None, None], "nobody wrote the ids down"
        return ledger

    yield submit_and_kill
    for child in children:
        child.kill()


def jobs_named(name: str) -> dict[str, str]:
    """All jobs of this name that Slurm shows, and their states."""
    return {job_id: answer.state for job_id, answer in job_answers([]).items() if answer.name == name}


def test_after_sbatch_the_jobs_are_found_and_train(interrupt: Interrupt, root: Path) -> None:
    ledger = interrupt("after sbatch")
    assert [state.state for state in wait_for_end(root, ledger.campaign, 60)] == ["completed"] * 2
    found = read_ledger(ledger_path(root, ledger.campaign))
    assert {str(job.job_id) for job in found.jobs} == jobs_named(ledger.campaign).keys()
    assert len(jobs_named(ledger.campaign)) == 2, "each run has one job"
    for job in found.jobs:
        (attempt,) = read_attempts(RunDir(root / job.run_id))
        assert attempt["job_id"] == job.job_id


def test_after_sbatch_a_cancel_reaches_the_jobs(interrupt: Interrupt, root: Path) -> None:
    ledger = interrupt("after sbatch", "trainer.max_steps=100000")
    outcomes = cancel(ledger.campaign, root)
    assert all(result.asked and "(job " in result.outcome for result in outcomes), outcomes
    assert [state.state for state in wait_for_end(root, ledger.campaign, 60)] == ["cancelled"] * 2
    wait_for(lambda: set(jobs_named(ledger.campaign).values()) <= {"CANCELLED"}, "the end of both jobs", 30)


def test_before_sbatch_nothing_was_queued_and_that_is_said_once_it_is_certain(interrupt: Interrupt, root: Path) -> None:
    ledger = interrupt("before sbatch")
    states = run_states(root, ledger.campaign)
    assert [state.state for state in states] == ["unknown"] * 2
    assert str(states[0].detail).startswith(
        "its submission was interrupted; that Slurm has no job of it is certain from"
    )
    with updating(ledger_path(root, ledger.campaign)) as older:
        older.created -= SETTLED_S
    time.sleep(1.0)  # the scheduler is asked again
    states = run_states(root, ledger.campaign)
    assert [state.state for state in states] == ["lost"] * 2
    assert states[0].detail == "was never queued: its submission was interrupted; submit it again"
    assert [result.outcome for result in cancel(ledger.campaign, root)] == ["nothing to cancel: lost"] * 2
    assert jobs_named(ledger.campaign) == {}
