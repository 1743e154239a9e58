"""A rerun on a real Slurm: one job that trains on from its parent's checkpoint, is requeued and resumed like any."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstab.metrics import read_events, read_history
from hpcstab.rundir import RunDir, find_runs
from hpcstab.state.ledger import ledger_path, read_ledger
from tests.slurm.conftest import Lab
from tests.slurm.runs import OneRun, final_weights, history, submit_one

pytestmark = pytest.mark.slurm
NUM_STEPS = 1_500
BRANCH = 500


def rerun(root: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "hpcstab", "rerun", *arguments, "--root", str(root)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120)


def the_job_of(root: Path, printed: str) -> OneRun:
    campaign = re.search(r"hpcstab status (\S+)", printed)
    assert campaign is not None, printed
    return OneRun(root, read_ledger(ledger_path(root, campaign[1])))


def test_a_rerun_is_submitted_requeued_and_ends_as_its_parent(lab: Lab, root: Path) -> None:
    parent = submit_one(root, NUM_STEPS, checkpoint_every=BRANCH)
    parent.wait_for_steps(BRANCH + 10)
    early = rerun(root, parent.run.run_id, "--from", str(BRANCH), "--cluster", "lab")
    assert early.returncode == 0, early.stderr
    assert re.search(rf"{parent.run.run_id} is running; what it does after its step {BRANCH} is not", early.stderr)
    child = the_job_of(root, early.stdout)
    assert f"{child.run.run_id}\tjob {child.job}\n" in early.stdout
    child.wait_for_steps(20)
    lab.verb("requeue", child.job)
    child.wait_for_hold("SIGTERM")
    lab.verb("release", child.job)
    assert (parent.wait_for_end(), child.wait_for_end()) == ("completed", "completed")
    kinds = [event["kind"] for event in read_events(child.run.events_jsonl)]
    assert (kinds.count("branched"), kinds.count("resumed")) == (1, 1)
    assert [attempt["job_id"] for attempt in child.attempts] == [child.job] * 2
    assert_continuation(child.run, parent.run)


def test_cancelled_logged_and_refused_before_anything_is_queued(lab: Lab, root: Path) -> None:
    parent = submit_one(root, NUM_STEPS, checkpoint_every=BRANCH)
    assert parent.wait_for_end() == "completed"
    before = find_runs(root)
    wrong = rerun(root, "after", "--from", str(BRANCH), "--with", "gdn_bounded")
    assert (wrong.returncode, wrong.stdout) == (2, "")
    assert wrong.stderr.startswith("hpcstab: --with gdn_bounded: gives another network")
    assert find_runs(root) == before
    child = the_job_of(
        root, rerun(root, "after", "--from", "last", "--with", "hardened", "--set", "trainer.max_steps=100000").stdout
    )
    child.wait_for_steps(20)
    logged = subprocess.run(
        [sys.executable, "-m", "hpcstab", "logs", child.run.run_id, "--root", str(root)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert logged.stdout.startswith(f"attempt 1 of {child.run.run_id} on ")
    subprocess.run(
        [sys.executable, "-m", "hpcstab", "cancel", child.ledger.campaign, "--root", str(root)],
        capture_output=True, text=True, timeout=60, check=True,
    )  # fmt: skip
    assert child.wait_for_end(60) == "cancelled"
    assert min(read_history(child.run.metrics_csv)) == NUM_STEPS


def assert_continuation(child: RunDir, parent: RunDir) -> None:
    """From the branch on the same steps, and at the end the same weights, to the bit."""
    ours, theirs = history(child.metrics_csv), history(parent.metrics_csv)
    assert list(ours["step"]) == list(range(BRANCH, NUM_STEPS))
    assert ours.equals(theirs[theirs["step"] >= BRANCH].reset_index(drop=True))
    weights, expected = final_weights(child), final_weights(parent)
    assert all(weights[name].equal(expected[name]) for name in expected)
