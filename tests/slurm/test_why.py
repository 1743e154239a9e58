"""What why says of jobs that Slurm has ended: one by scancel, one at its time limit."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstab.explain.look import Asking, facts_of
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Story
from hpcstab.launch.answers import scheduler_answers
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import FOR_EVER, OneRun, planned_runs, submit_runs

pytestmark = pytest.mark.slurm


def told(one: OneRun) -> Story:
    scheduler_answers(one.root, min_age_s=0)
    return story_of_run(facts_of(one.run, Asking(replays=False, scans=False)))


def test_a_cancelled_and_a_timed_out_job(lab: Lab, root: Path) -> None:
    cancelled, limited = submit_runs(root, planned_runs(2, FOR_EVER), max_parallel=2, signal_lead_s=10)
    for one in (cancelled, limited):
        one.wait_for_steps(3)
    assert [told(one).causes[0].name for one in (cancelled, limited)] == ["still_running_healthy"] * 2
    lab.slurm(
        "scontrol", "update", f"jobid={limited.job}", "Requeue=0", "TimeLimit=1"
    )  # so that it cannot queue itself again
    cancelled.scancel()
    assert cancelled.wait_for_end(60) == "cancelled"
    story = told(cancelled)
    assert (story.causes[0].name, story.causes[0].confidence, story.exit_code) == ("cancelled_by_user", "certain", 0)
    wait_for(lambda: limited.state.state == "timeout", "the time limit, and the kill after it", 200)
    story = told(limited)
    assert (story.causes[0].name, story.causes[0].confidence, story.exit_code) == ("time_limit", "certain", 1)
    assert story.causes[0].evidence[0].source in ("squeue", "sacct")
    assert (
        story.commands[0].line.startswith(f"hpcstab rerun {limited.run.path.name}")
        or "submit" in story.commands[0].line
    )
