"""swae3d on real fields, from stand-in archives: it trains, is measured on whole fields, and says what it used."""

from __future__ import annotations

from pathlib import Path
from typing import get_args

import numpy as np
import pytest
import torch

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.data.fields import FIELDS
from hpcstab.errors import ConfigError, DataError
from hpcstab.execute import execute
from hpcstab.metrics import read_rows
from hpcstab.models.swae3d.config import Config, FieldName
from hpcstab.models.swae3d.task import Task
from hpcstab.rundir import read_json
from hpcstab.training.context import TrainingContext
from tests.conftest import MakeRun
from tests.data.stand_ins import density_map, fetched, smooth, swae3d_files

REAL = "data.source=real"
CONTEXT = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))


@pytest.fixture
def _fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in swae3d_files().items():
        fetched(monkeypatch, tmp_path, package, contents)


def make_task(*settings: str, scale: str = "tiny") -> Task:
    config = resolve(load_experiment("swae3d"), "cured", scale, parse_overrides([REAL, *settings])).config
    assert isinstance(config, Config)
    return Task(config, seed=0)


def test_the_config_knows_every_field() -> None:
    assert get_args(FieldName) == tuple(FIELDS)
    with pytest.raises(ConfigError, match="names a field twice"):
        make_task("data.fields=[theta, theta]")


@pytest.mark.usefixtures("_fetched")
def test_trains_and_is_measured_on_whole_fields(train_run: MakeRun) -> None:
    run = train_run("swae3d", "cured", settings=[REAL])
    status, task = read_json(run.status_json), read_json(run.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] == "completed"
    assert task["data"]["source"] == (
        "real fields: density_crystal, density_particle of griddataformats 1.2.0;"
        " theta, pressure of iris-sample-data 2.5.2"
    )
    assert "LGPL-3.0" in task["data"]["licence"]
    assert (task["data"]["num_train_volumes"], task["data"]["num_validation_volumes"]) == (12, 4)
    assert task["data"]["num_leaked_volumes"] == 0
    assert {row["num_batches"] for row in read_rows(run.evals_csv)} == {"4"}  # fields differ in shape: one a batch
    assert len(list(run.samples.glob("*.png"))) == 2


@pytest.mark.usefixtures("_fetched")
def test_psnr_of_a_field_does_not_depend_on_its_unit() -> None:
    """An offset of a quarter of the scaled range is the same number of decibels in any unit."""
    task = make_task("data.fields=[theta]")
    validation = task.dataset("validation")

    class Offset(torch.nn.Module):
        def forward(self, blocks: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
            return blocks + 0.25, blocks.flatten(1)

    totals = task.evaluate(Offset(), validation[0][None], CONTEXT)
    metrics = task.summarize({name: float(part.value) for name, part in totals.items()})
    theta = (285.0 + smooth((6, 10, 83, 17), 2)).astype(np.float32)
    error = 0.25 * np.ptp(theta[:5, :8, :48, :16]) / 2  # kelvin
    assert metrics["psnr"] == pytest.approx(20 * np.log10(np.ptp(theta[5, :8, 59:, :16]) / error), abs=1e-3)


def test_without_fetched_data_it_is_one_error_and_no_fallback(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path / "empty"))
    run = make_run("swae3d", "before", settings=[REAL])
    with pytest.raises(DataError, match="run `hpcstab data fetch swae3d`") as caught:
        execute(run, 1)
    assert caught.value.exit_code == 3
    status = read_json(run.status_json)
    assert status is not None
    assert status["state"] == "failed"


def test_the_check_looks_at_real_values(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    values = smooth((70, 16, 16), 0)
    values[60, 0, 0] = np.nan
    filled = smooth((97, 16, 16), 1)
    filled[2, 2, 2] = 1e34  # a fill value
    contents = {"1jzv.ccp4": density_map(values), "ispg_0.mrc": density_map(filled)}
    fetched(monkeypatch, tmp_path, "griddataformats", contents)
    findings = make_task("data.fields=[density_crystal, density_particle]").check_data()
    assert [(finding.kind, finding.split, finding.count) for finding in findings] == [
        ("non_finite", "validation", 1),
        ("range", "train", 1),
    ]
    assert "density_particle_t0" in findings[1].message
