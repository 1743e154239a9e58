"""Runs on several ranks: what is asked of Slurm, what is refused, who starts them, and one that is lost."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from pydantic import ValidationError

from hpcstab.campaign import parse_overrides, plan
from hpcstab.errors import ConfigError, RankLostError
from hpcstab.launch import slurm_job
from hpcstab.launch.clusters import (
    Cluster,
    load_cluster,
    nodes_per_run,
    parallel_runs,
    ranks_per_run,
    why_unusable,
    with_gpus,
)
from hpcstab.launch.submit import refuse_unequal_shares, shown_script, submit
from hpcstab.rundir import RunDir, read_attempts, read_json
from hpcstab.stability.gate.ranks import contact
from hpcstab.training.ranks import Ranks
from tests.conftest import REPOSITORY
from tests.launch.conftest import local, wait_for_end, wait_until


@pytest.mark.parametrize(
    ("gpus", "lines"),
    [
        (1, ["--nodes=1", "--ntasks-per-node=1", "--gres=gpu:1", "--cpus-per-task=16", "--mem=58G"]),
        (2, ["--nodes=1", "--ntasks-per-node=2", "--gres=gpu:2", "--cpus-per-task=16", "--mem=116G"]),
        (4, ["--nodes=1", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=16", "--mem=232G"]),
        (8, ["--nodes=2", "--ntasks-per-node=4", "--gres=gpu:4", "--cpus-per-task=16", "--mem=232G"]),
    ],
)
def test_a_task_for_each_gpu_and_whole_nodes_beyond_one(tmp_path: Path, gpus: int, lines: list[str]) -> None:
    cluster = with_gpus(load_cluster("delta"), gpus)
    assert (ranks_per_run(cluster), nodes_per_run(cluster)) == (gpus, max(1, gpus // 4))
    script = shown_script(tmp_path, "swae3d", cluster, 2)
    assert [line for line in lines if f"#SBATCH {line}\n" not in script] == []
    assert ("--kill-on-bad-exit=1" in script) == (gpus > 1)


def test_gpus_that_nodes_cannot_give(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigError, match=r"--gpus 6 on cluster 'delta'.*multiples of 4"):
        with_gpus(load_cluster("delta"), 6)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    reason = why_unusable(with_gpus(load_cluster("local"), 2))
    assert reason is not None
    assert "asks for 2 GPUs a run; here are 0; ranks_per_run in its file is for several ranks on cores" in reason
    with pytest.raises(ValidationError, match="each rank has one GPU"):
        Cluster.model_validate(load_cluster("local").model_dump() | {"gpus_per_run": 2, "ranks_per_run": 3})


def test_ranks_on_cores_share_them(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    monkeypatch.setattr("hpcstab.launch.clusters.num_cores", lambda: 8)
    cluster = load_cluster("two_ranks")
    assert (ranks_per_run(cluster), nodes_per_run(cluster), parallel_runs(cluster)) == (2, 1, 4)


def test_a_batch_that_ranks_cannot_share_is_refused_before_anything_is_queued() -> None:
    runs = plan(["swae3d"], ["before"], [0], "tiny", parse_overrides(["data.batch_size=9"]))
    refuse_unequal_shares(runs, 3)
    with pytest.raises(ConfigError, match=r"swae3d@before.*batch_size 9 cannot be shared equally by 2 ranks"):
        refuse_unequal_shares(runs, 2)


def test_each_task_of_slurm_takes_its_gpu_and_the_meeting_of_all(monkeypatch: pytest.MonkeyPatch) -> None:
    """As srun sets them for the second task on the second of two nodes; no such host is known but to Slurm."""
    monkeypatch.setattr("hpcstab.launch.scheduler.node_address", {"gpua001.invalid": "10.0.0.1"}.__getitem__)
    monkeypatch.setattr("submitit.JobEnvironment", lambda: _Tasks)
    for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT"):
        monkeypatch.setenv(name, "")
    monkeypatch.delenv("MASTER_PORT")
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    assert slurm_job.take_rank(RunDir(Path("/runs/m/v/one"))) == 3
    assert [os.environ[name] for name in ("RANK", "WORLD_SIZE", "MASTER_ADDR")] == ["3", "4", "10.0.0.1"]
    assert os.environ["CUDA_VISIBLE_DEVICES"] == "3"
    port = os.environ["MASTER_PORT"]
    assert 20_000 <= int(port) < 32_000, "below the ports that the kernel gives away"
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "2,3")
    slurm_job.take_rank(RunDir(Path("/runs/m/v/two")))
    assert os.environ["MASTER_PORT"] != port, "jobs of one id, of two clusters on one machine"


class _Tasks:
    """What submitit says of that task."""

    num_tasks, global_rank, local_rank, num_nodes, job_id = 4, 3, 1, 2, "7_0"
    hostnames = ("gpua001.invalid", "gpua002.invalid")


def test_only_torch_s_own_errors_are_a_lost_rank() -> None:
    with pytest.raises(RankLostError, match="lost contact with the others: Connection closed by peer"), contact():
        raise dist.DistBackendError("Connection closed by peer [127.0.0.1]\nmore")
    with pytest.raises(ZeroDivisionError), contact():
        raise ZeroDivisionError


def test_a_rank_that_has_ended_is_seen() -> None:
    host = os.uname().nodename
    child = subprocess.Popen([sys.executable, "-c", ""])
    ranks = Ranks(0, 4, ((host, os.getpid()), (host, child.pid), ("elsewhere", 1), (host, 2**22 + 1)))
    wait_until(lambda: ranks.ended() == [1, 3], "the child to be a zombie")
    child.wait()
    assert ranks.ended() == [1, 3]


@pytest.mark.slow
def test_a_run_whose_rank_is_killed_goes_on_as_if_nothing_had_happened(root: Path) -> None:
    """Killed between two checkpoints; the attempt ends and names the rank; the next one ends bitwise as one without."""
    settings = parse_overrides(["trainer.max_steps=400", "trainer.checkpoint_every={steps: 50}"])
    planned = plan(["swae3d"], ["cured"], [0], "tiny", settings)
    cluster = local(ranks_per_run=2, max_parallel=1)
    killed = submit(planned, "swae3d", cluster, root)
    run = RunDir(root / killed.jobs[0].run_id)
    with _no_rank_left(run):
        wait_until(lambda: run.checkpoint(100).exists(), "a checkpoint", 180.0)
        os.kill(_other_rank(run), signal.SIGKILL)
        (state,) = wait_for_end(root, killed.campaign)
        assert (state.state, state.attempt) == ("failed", 1)
        status = read_json(run.status_json)
        assert status is not None
        assert re.search(r"rank 0 of 2 has lost contact .*; rank 1 has ended, see logs/001_rank1.log", status["error"])
        resume = [sys.executable, "-m", "hpcstab", "train", "--resume", run.run_id, "--root", str(root)]
        done = subprocess.run(resume, cwd=REPOSITORY, capture_output=True, text=True, timeout=240)
        assert done.returncode == 0, done.stdout + done.stderr
    first, second = read_attempts(run)
    assert (first["reason"], first["ranks"], second["reason"], second["ranks"]) == ("failed", 2, "completed", 2)
    assert 200 < second["steps_gained"] <= 300, "it began at the last checkpoint"
    plain = submit(planned, "swae3d", cluster, root)
    wait_for_end(root, plain.campaign)
    weights, expected = _weights(run), _weights(RunDir(root / plain.jobs[0].run_id))
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)


def _weights(run: RunDir) -> dict[str, Any]:
    state: dict[str, Any] = torch.load(run.checkpoint(400) / "state.pt", weights_only=True)
    return state["network"]


def _processes_of(run: RunDir) -> list[int]:
    """Its other ranks: processes that were started for its folder."""
    found = []
    for folder in Path("/proc").glob("[0-9]*"):
        try:
            words = (folder / "cmdline").read_text().split("\0")
        except OSError:
            continue
        if "hpcstab.launch.rank" in words and str(run.path) in words:
            found.append(int(folder.name))
    return found


def _other_rank(run: RunDir) -> int:
    (process,) = _processes_of(run)
    return process


@contextmanager
def _no_rank_left(run: RunDir) -> Iterator[None]:
    yield
    wait_until(lambda: not _processes_of(run), "all ranks to be gone", 15.0)
