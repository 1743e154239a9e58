"""Parents at scale tiny, trained in this process, and reruns of them without jobs."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.execute import execute
from hpcstab.identity import create_run
from hpcstab.launch.folders import RunFolders
from hpcstab.metrics import read_events
from hpcstab.rerun import Rerun, plan_rerun
from hpcstab.rundir import RunDir, begin_attempt, end_attempt

EVERY_TWO = ["trainer.checkpoint_every={steps: 2}", "trainer.evaluate_every={steps: 2}"]
Begin = Callable[..., RunDir]


@pytest.fixture(scope="session")
def trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """``after``, which has BatchNorm, with checkpoints before steps 2, 4 and 6, which is its end."""
    experiment = load_experiment("swae3d")
    resolved = resolve(experiment, "after", "tiny", parse_overrides(EVERY_TWO))
    run = create_run(tmp_path_factory.mktemp("trained"), experiment, resolved, 0)
    assert train(run) == "completed"
    return run


@pytest.fixture
def parent(trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy of it, as if it had been carried here."""
    return RunDir(shutil.copytree(trained.path, tmp_path / "runs" / trained.run_id))


def plan(run: RunDir, wanted: str = "healthy", *fixes: str, settings: tuple[str, ...] = (), **more: Any) -> Rerun:
    return plan_rerun(run, wanted, fixes, parse_overrides(list(settings)), **more)


@pytest.fixture
def begin(tmp_path: Path) -> Begin:
    """The folder of a rerun, as submit makes it."""

    def make(rerun: Rerun) -> RunDir:
        root = tmp_path / "reruns"
        (run_id,) = RunFolders(root, [rerun.planned]).create("c_20260101_000000", root / ".staged", None)
        return RunDir(root / run_id)

    return make


def train(run: RunDir, stop_after: int | None = None) -> str:
    """One attempt; a signal asks it to stop after so many steps."""
    turns = iter(range(10**9))

    def stop_requested() -> str | None:
        return "SIGUSR2" if stop_after is not None and next(turns) >= stop_after else None

    number = begin_attempt(run, {"node": "test"})
    result = execute(run, number, stop_requested)
    end_attempt(run, number, result.state, result.steps_gained)
    return result.state


def event(run: RunDir, kind: str) -> dict[str, Any]:
    """The only event of a kind."""
    (found,) = [entry for entry in read_events(run.events_jsonl) if entry["kind"] == kind]
    return found


def rewrite(run: RunDir, step: int, change: Callable[[dict[str, Any]], None], **facts: Any) -> None:
    """Change the state of a checkpoint as its trainer might have left it: with a manifest that vouches for it."""
    state, manifest = read_checkpoint(run.checkpoint(step))
    change(state)
    kept = {
        key: manifest[key]
        for key in ("step", "healthy", "update", "attempt", "nonfinite", "scheduled", "world_size", "evaluation")
    }
    write_checkpoint(run.checkpoint(step), state, {**kept, **facts})


def poison(state: dict[str, Any], what: str) -> None:
    """NaN into all tensors of the network whose name ends with ``what``."""
    for name, tensor in state["network"].items():
        if name.endswith(what):
            tensor.fill_(torch.nan)
