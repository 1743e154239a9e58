"""Runs on several ranks of a real Slurm: tasks of one node and of two, requeued, and one that is lost."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import pytest

from hpcstab.launch.clusters import load_cluster
from hpcstab.launch.submit import submit
from hpcstab.metrics import read_events
from hpcstab.rundir import RunDir, find_runs, read_json
from tests.slurm.conftest import Lab, wait_for
from tests.slurm.runs import NUM_STEPS, OneRun, final_weights, history, planned_runs, submit_runs

pytestmark = pytest.mark.slurm


def test_two_nodes_requeued_train_what_two_processes_of_one_machine_train(lab: Lab, root: Path, tmp_path: Path) -> None:
    (one,) = submit_runs(root, planned_runs(), gpus_per_node=1, gpus_per_run=2)
    one.wait_for_steps(50)
    lab.verb("requeue", one.job)
    one.wait_for_hold("SIGTERM")
    lab.verb("release", one.job)
    assert one.wait_for_end() == "completed"
    wait_for(lambda: one.attempts[-1]["end"], "the record of the last attempt", 20)
    assert [attempt["reason"] for attempt in one.attempts] == ["SIGTERM", "completed"]
    assert [(attempt["ranks"], attempt["nodes"]) for attempt in one.attempts] == [(2, ["n1", "n2"])] * 2
    assert one.attempts[0]["devices"] == ["n1:0", "n2:0"]
    plain = _on_this_machine(tmp_path / "plain")
    assert history(one.run.metrics_csv).equals(history(plain.metrics_csv))
    weights, expected = final_weights(one.run), final_weights(plain)
    assert all(weights[name].equal(expected[name]) for name in expected)


def test_four_ranks_of_one_node(lab: Lab, root: Path) -> None:
    (one,) = submit_runs(root, planned_runs(num_steps=30), gpus_per_run=4)
    assert one.wait_for_end() == "completed"
    wait_for(lambda: one.attempts[-1]["end"], "the record of the attempt", 20)
    (attempt,) = one.attempts
    assert (attempt["ranks"], attempt["devices"]) == (4, ["0", "1", "2", "3"])
    (start,) = [event["data"] for event in read_events(one.run.events_jsonl) if event["kind"] == "train_start"]
    assert (start["num_ranks"], start["batch_size"], start["batch_size_per_rank"]) == (4, 16, 4)
    assert [one.run.log(1, rank).exists() for rank in range(4)] == [True] * 4


def test_a_job_that_lost_a_rank_goes_on_from_its_last_checkpoint(lab: Lab, root: Path) -> None:
    (one,) = submit_runs(root, planned_runs(checkpoint_every=100), gpus_per_run=2)
    one.wait_for_steps(150)
    os.kill(_process_of_rank(one, 1), signal.SIGKILL)
    one.wait_for_hold("rank_lost")
    said = one.run.log(1).read_text()
    assert "rank 1 has ended, see logs/001_rank1.log" in said
    assert "goes on from its last checkpoint: queued again" in said
    lab.verb("release", one.job)
    assert one.wait_for_end() == "completed"
    wait_for(lambda: one.attempts[-1]["end"], "the record of the last attempt", 20)
    assert [attempt["reason"] for attempt in one.attempts] == ["rank_lost", "completed"]
    assert 0 < one.attempts[1]["steps_gained"] <= NUM_STEPS - 100


def test_a_job_that_loses_a_rank_before_it_has_saved_anything_is_not_queued_again(lab: Lab, root: Path) -> None:
    (one,) = submit_runs(root, planned_runs(), gpus_per_run=2)
    one.wait_for_steps(20)
    os.kill(_process_of_rank(one, 1), signal.SIGKILL)
    assert one.wait_for_end(90) == "failed"
    assert "saved nothing since this attempt began" in one.run.log(1).read_text()


def _on_this_machine(root: Path) -> RunDir:
    cluster = load_cluster("two_ranks")
    submit(planned_runs(), "swae3d", cluster, root)
    (run,) = find_runs(root)
    wait_for(lambda: (read_json(run.status_json) or {}).get("state") == "completed", "the run without Slurm", 300)
    return run


def _process_of_rank(one: OneRun, rank: int) -> int:
    """By its folder too: the labs of these tests may have jobs of one id."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            variables = (folder / "environ").read_text().split("\0")
            command = (folder / "cmdline").read_text()
        except OSError:
            continue
        is_ours = "hpcstab.launch.slurm_step" in command and str(one.root) in command and "srun" not in command
        if is_ours and f"SLURM_PROCID={rank}" in variables:
            found.append(int(folder.name))
    (process,) = found
    return process
