"""The failure of `before`: a KL that has overflowed, times the weight 0 of epoch 0, is NaN."""

from __future__ import annotations

import math

from hpcstab.execute import replay
from hpcstab.metrics import read_rows
from hpcstab.rundir import RunDir
from tests.conftest import MakeRun

HEADS_OF_512_CHANNELS = [
    "network.channels=[8, 8, 16, 512]",  # those of the write-up; all before them may be narrow
    "data.num_samples=60",  # 12 steps of weight 0
    "optimizer.lr=3e-3",  # thirty times the write-up's: a few steps instead of a few dozen
    "scheduler.name=constant",
    "trainer.max_steps=6",
]


def rows_of(run: RunDir) -> list[dict[str, float]]:
    names = ("step", "loss", "loss_kl", "loss_reconstruction", "diag_logvar_max")
    return [{name: float(row[name]) for name in names} for row in read_rows(run.metrics_csv)]


def test_zero_times_infinity_is_the_failure(train_run: MakeRun) -> None:
    """The same steps with and without the product, until the KL is infinite: with it NaN, without it a good step."""
    run = train_run("vae2d", "before", seed=0, settings=HEADS_OF_512_CHANNELS)
    rows = rows_of(run)
    bad = next(row for row in rows if not math.isfinite(row["loss"]))
    assert bad["loss_kl"] == math.inf
    assert bad["diag_logvar_max"] > 88.7  # exp overflows fp32
    assert math.isnan(bad["loss"])
    assert math.isfinite(bad["loss_reconstruction"])

    left_out = rows_of(train_run("vae2d", "before+no_zero_times_inf", seed=0, settings=HEADS_OF_512_CHANNELS))
    step = int(bad["step"])
    assert [row["loss"] for row in left_out[:step]] == [row["loss"] for row in rows[:step]]
    assert left_out[step]["loss_kl"] == math.inf
    assert left_out[step]["loss"] == bad["loss_reconstruction"]

    found = replay(run.capsule(step)).as_json()
    assert found["creator"]["operation"] == "aten.exp.default"
    assert "logvar.exp()" in found["creator"]["text"]
    assert [each["operation"] for each in found["path"] if each["times_zero"]] == ["aten.mul.Tensor"]
    assert found["advice"]["verdict"] == "layer"
    assert "leave a term of weight 0 out" in found["advice"]["line"]


def test_heads_near_zero_are_the_cure_of_the_start(train_run: MakeRun) -> None:
    rows = rows_of(train_run("vae2d", "before+near_zero_heads", seed=0, settings=HEADS_OF_512_CHANNELS))
    assert max(row["diag_logvar_max"] for row in rows) < 30.0
