"""A run that diverged at step 1, trained once for all tests that only read it."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.execute import execute
from hpcstab.identity import create_run
from hpcstab.rundir import RunDir, begin_attempt, end_attempt


@pytest.fixture(scope="session")
def _trained(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    experiment = load_experiment("swae3d")
    overrides = parse_overrides(["optimizer.lr=0.1", "trainer.max_steps=30"])
    run = create_run(
        tmp_path_factory.mktemp("trained") / "runs", experiment, resolve(experiment, "before", "tiny", overrides), 0
    )
    attempt = begin_attempt(run, {"node": "gpua012.cluster.example", "devices": ["0"]})
    result = execute(run, attempt)
    end_attempt(run, attempt, result.state, result.steps_gained)
    return run


@pytest.fixture
def diverged(_trained: RunDir, tmp_path: Path) -> RunDir:
    """A copy of it."""
    path = tmp_path / "runs" / _trained.run_id
    shutil.copytree(_trained.path, path)
    return RunDir(path)
