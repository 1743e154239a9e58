"""Runs on the lab, one at a time, and the run that nothing happened to, which they are compared with."""

from __future__ import annotations

import re
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas
import torch

from hpcstab.campaign import PlannedRun, plan
from hpcstab.config import parse_overrides
from hpcstab.launch.clusters import Cluster, load_cluster
from hpcstab.launch.queue import RunState, run_states
from hpcstab.launch.submit import submit
from hpcstab.rundir import RunDir, read_attempts, read_json
from hpcstab.state.ledger import Ledger, ledger_path, submission_folder
from tests.slurm.waiting import wait_for

NUM_STEPS = 1_500
"""About 12 s; 1,000 steps are an epoch, so that what is cut before has a cut epoch and one more to go on with."""
FOR_EVER = 100_000
SELDOM = 1_000
"""Steps from one checkpoint to the next: more than are trained until a fault comes."""
_OF_THE_MOMENT = ("attempt", "time_s", "step_time_s", "peak_mem_gib", "seconds")


def planned_runs(
    num_runs: int = 1, num_steps: int = NUM_STEPS, checkpoint_every: int = SELDOM, evaluate_every: int = 300
) -> list[PlannedRun]:
    """One seed each from 0; how often they are saved and evaluated takes time and changes no number."""
    settings = [f"trainer.max_steps={num_steps}", "data.num_samples=2500", "trainer.probe_every={steps: 500}"]
    settings += [f"trainer.checkpoint_every={{steps: {checkpoint_every}}}"]
    settings += [f"trainer.evaluate_every={{steps: {evaluate_every}}}"]
    return plan(["swae3d"], ["after"], list(range(num_runs)), "tiny", parse_overrides(settings))


def lab_cluster(**changes: object) -> Cluster:
    """The shipped cluster ``lab``; ``partition=...`` changes its section slurm."""
    cluster = load_cluster("lab")
    assert cluster.slurm is not None
    of_slurm = {key: value for key, value in changes.items() if key in type(cluster.slurm).model_fields}
    rest = {key: value for key, value in changes.items() if key not in of_slurm}
    return cluster.model_copy(update={**rest, "slurm": cluster.slurm.model_copy(update=of_slurm)})


@dataclass(frozen=True)
class OneRun:
    """A run of a campaign, and what a test waits for."""

    root: Path
    ledger: Ledger
    index: int = 0

    @property
    def run(self) -> RunDir:
        return RunDir(self.root / self.ledger.jobs[self.index].run_id)

    @property
    def job(self) -> str:
        job_id = self.ledger.jobs[self.index].job_id
        assert job_id is not None
        return job_id

    @property
    def state(self) -> RunState:
        return run_states(self.root, self.ledger.campaign)[self.index]

    @property
    def attempts(self) -> list[dict[str, Any]]:
        return read_attempts(self.run)

    @property
    def printed(self) -> str:
        """What submitit caught of all attempts."""
        folder = submission_folder(ledger_path(self.root, self.ledger.campaign))
        return (folder / f"{self.job}_0_log.out").read_text()

    def num_steps(self) -> int:
        return max(0, len(self.run.metrics_csv.read_text().splitlines()) - 1) if self.run.metrics_csv.exists() else 0

    def wait_for_steps(self, num_steps: int) -> None:
        wait_for(lambda: self.num_steps() >= num_steps, f"{num_steps} steps of {self.run.run_id}", 180)

    def wait_for_state(self, state: str, patience_s: float = 90) -> RunState:
        def reached() -> bool:
            now = self.state
            assert now.state == state or now.is_open, now
            return now.state == state

        wait_for(reached, f"{self.run.run_id} to be {state}", patience_s)
        return self.state

    def wait_for_hold(self, reason: str) -> None:
        """After a requeue status shows the hold, and why the attempt before it ended."""

        def is_held() -> bool:
            now = self.state
            assert now.is_open, now
            return now.state == "queued" and (now.detail or "").startswith("restarts at ")

        wait_for(is_held, f"the hold of {self.run.run_id}", 120)
        detail = self.state.detail or ""
        assert re.fullmatch(rf"restarts at \d\d:\d\d, attempt \d+: {reason}", detail), detail

    def wait_for_end(self, patience_s: float = 300) -> str:
        wait_for(lambda: not self.state.is_open, f"end of {self.run.run_id}", patience_s)
        return self.state.state

    def silence_s(self) -> float:
        """Since the last heartbeat of the trainer."""
        status = read_json(self.run.status_json)
        assert status is not None
        return time.time() - float(status["time"])

    def scancel(self) -> None:
        """By hand: the ledger does not know of it."""
        subprocess.run(["scancel", self.job], check=True, timeout=30)


def submit_runs(root: Path, planned: list[PlannedRun], **changes: object) -> list[OneRun]:
    """Submitted as one array; ``changes`` to the cluster ``lab``."""
    ledger = submit(planned, "swae3d", lab_cluster(**changes), root)
    return [OneRun(root, ledger, job.index) for job in ledger.jobs]


def submit_one(root: Path, num_steps: int = NUM_STEPS, checkpoint_every: int = SELDOM, **changes: object) -> OneRun:
    (one,) = submit_runs(root, planned_runs(1, num_steps, checkpoint_every), **changes)
    return one


def assert_as_if_nothing_happened(run: RunDir, uninterrupted: RunDir) -> None:
    """The same final weights to the bit, and in every step and common evaluation the same figures."""
    weights, expected = final_weights(run), final_weights(uninterrupted)
    assert weights.keys() == expected.keys()
    assert all(torch.equal(weights[name], expected[name]) for name in expected)
    steps, expected_steps = history(run.metrics_csv), history(uninterrupted.metrics_csv)
    assert list(steps["step"]) == list(range(NUM_STEPS))
    pandas.testing.assert_frame_equal(steps, expected_steps, check_exact=True)
    evaluations, expected_evaluations = history(run.evals_csv), history(uninterrupted.evals_csv)
    common = evaluations[evaluations["step"].isin(expected_evaluations["step"])].reset_index(drop=True)
    pandas.testing.assert_frame_equal(common, expected_evaluations, check_exact=True)


def history(path: Path) -> pandas.DataFrame:
    """The last row of each step, in the order of steps, without what no two attempts have in common."""
    rows = pandas.read_csv(path)
    return (
        rows.drop(columns=[name for name in _OF_THE_MOMENT if name in rows])
        .drop_duplicates("step", keep="last")
        .sort_values("step", ignore_index=True)
    )


def final_weights(run: RunDir) -> dict[str, torch.Tensor]:
    newest = sorted(run.checkpoints.glob("step_*"))[-1]
    network: dict[str, torch.Tensor] = torch.load(newest / "state.pt", weights_only=True)["network"]
    return network
