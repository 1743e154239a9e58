"""vae2d at scale quick: what the issue promises of it, on one core."""

from __future__ import annotations

from pathlib import Path

import pytest

from hpcstab.config import load_experiment, resolve
from hpcstab.execute import execute, replay
from hpcstab.identity import create_run
from hpcstab.judgement import judge
from hpcstab.metrics import read_rows
from hpcstab.rundir import RunDir, begin_attempt, end_attempt, read_json


def train_quick(root: Path, variant: str, seed: int) -> RunDir:
    experiment = load_experiment("vae2d")
    run = create_run(root, experiment, resolve(experiment, variant, "quick"), seed)
    attempt = begin_attempt(run, {"node": "test"})
    result = execute(run, attempt)
    end_attempt(run, attempt, result.state, result.steps_gained)
    return run


@pytest.mark.slow
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_before_dies_of_zero_times_infinity_in_epoch_0(tmp_path: Path, seed: int) -> None:
    """Replay names exp of a log-variance above 88.7, times the weight 0 of the first epoch."""
    run = train_quick(tmp_path, "before", seed)
    status = read_json(run.status_json)
    assert status is not None
    assert status["state"] == "diverged"
    step = status["first_nonfinite_step"]
    assert read_rows(run.metrics_csv)[step]["epoch"] == "0"
    found = replay(run.capsule(step)).as_json()
    assert (found["creator"]["operation"], "logvar.exp()" in found["creator"]["text"]) == ("aten.exp.default", True)
    assert any(each["times_zero"] for each in found["path"])


@pytest.mark.slow
def test_after_and_cured_stay_finite_and_cured_learns(tmp_path: Path) -> None:
    """Better than the mean film by 1 dB at least; the gate of cured refuses nothing."""
    runs = {variant: train_quick(tmp_path, variant, 0) for variant in ("after", "cured")}
    judgements = {variant: judge(run) for variant, run in runs.items()}
    assert [judgement.finite.answer for judgement in judgements.values()] == ["yes", "yes"]
    assert judgements["cured"].stable
    task = read_json(runs["cured"].task_json)
    assert task is not None
    floor = next(each["scores"]["psnr"] for each in task["baselines"]["validation"] if each["role"] == "floor")
    assert float(read_rows(runs["cured"].evals_csv)[-1]["psnr"]) >= floor + 1.0
