"""Fixtures shared by all tests: one thread, no environment of the developer, tiny runs of the real trainer."""

from __future__ import annotations

import functools
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.config import (
    Experiment,
    load_experiment,
    model_names,
    parse_overrides,
    resolve,
)
from hpcstab.identity import create_run
from hpcstab.rundir import RunDir, begin_attempt, end_attempt

REPOSITORY = Path(__file__).resolve().parents[1]
MODELS = model_names()
"""Tests iterate over the registry, so that a later model is covered without a new test."""

MakeRun = Callable[..., RunDir]


@functools.cache
def experiment_of(model: str) -> Experiment:
    """A model's YAML, read once: hundreds of tests begin with it."""
    return load_experiment(model)


def with_one_change(experiment: Experiment, fix: str) -> str:
    """``before`` with the fix, or without it where ``before`` has it."""
    return f"before-{fix}" if fix in experiment.file.variants.get("before", ()) else f"before+{fix}"


@pytest.fixture(autouse=True)
def _plain_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("HPCSTAB_CONFIGS", "HPCSTAB_CLUSTER", "HPCSTAB_DATA"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("SLURM_CONF", "/dev/null")  # no test meets a Slurm by chance


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> None:
    import torch

    torch.set_num_threads(1)


@pytest.fixture
def make_run(tmp_path: Path) -> MakeRun:
    """A run folder that has not been trained: ``make_run("swae3d", "after", seed=1, settings=[...])``."""

    def make(
        model: str = "swae3d", variant: str = "before", seed: int = 0, settings: list[str] | None = None
    ) -> RunDir:
        experiment = experiment_of(model)
        resolved = resolve(experiment, variant, "tiny", parse_overrides(settings or []))
        return create_run(tmp_path / "runs", experiment, resolved, seed)

    return make


@pytest.fixture
def train_run(make_run: MakeRun) -> MakeRun:
    """A run folder after one attempt at scale tiny, with the real trainer in this process."""

    def train(*args: object, **kwargs: object) -> RunDir:
        from hpcstab.execute import execute

        run = make_run(*args, **kwargs)
        attempt = begin_attempt(run, {"node": "test"})
        result = execute(run, attempt)
        end_attempt(run, attempt, result.state, result.steps_gained)
        return run

    return train
