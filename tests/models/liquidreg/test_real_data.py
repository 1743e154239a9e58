"""liquidreg on real brains and on a user's folder, from stand-ins: it trains, is measured, and says what it used."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pytest

from hpcstab.errors import DataError
from hpcstab.metrics import read_rows
from hpcstab.models.liquidreg.task import Task
from hpcstab.rundir import read_json
from tests.conftest import MakeRun
from tests.data.test_registration_folder import image, regions, write
from tests.data.test_scanned_brains import put_in_cache
from tests.models.liquidreg.making import held_out, make_config

REAL = "data.source=real"
BOTH = "data.brains=[mni152, colin27]"


def test_trains_on_mni152(train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    put_in_cache(monkeypatch, tmp_path, ("nilearn",))
    run = train_run("liquidreg", "cured", settings=[REAL])
    status, task = read_json(run.status_json), read_json(run.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] == "completed"
    assert task["data"]["source"] == "mni152 of nilearn 0.14.1, each with itself, warped by a seeded flow"
    assert "terms of its own" in task["data"]["licence"]
    assert "same brains" in task["data"]["held_out_by"]
    assert task["data"]["scans"].startswith(
        "mni152: axes right, front, head; 33 x 39 x 32 voxels of 6 x 6 x 6 mm; 0 to"
    )
    assert task["data"]["spacing_mm"] == 192.0 / 20
    assert (task["data"]["num_labels"], task["data"]["num_validation_pairs"]) == (2, 2)
    assert not [metric for metric in task["metrics"] if metric["name"].startswith("beside_")]
    last = read_rows(run.evals_csv)[-1]
    by_label = [float(last["dice_grey_matter"]), float(last["dice_white_matter"])]
    assert sum(by_label) / 2 == pytest.approx(float(last["dice"])), "both pairs have both"


def test_with_both_brains_their_pair_stands_beside(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    put_in_cache(monkeypatch, tmp_path, ("nilearn", "mricron-data"))
    task = Task(make_config("cured", "tiny", REAL, BOTH), 0)
    assert task.dataset("validation").ids[0] == "colin27_to_mni152"
    assert "colin27_to_mni152" not in task.dataset("train").ids
    assert task.check_data() == []
    assert not [metric for metric in task.metrics if metric.name.startswith("dice_")], (
        "each brain has labels of its own"
    )
    batch = held_out(task)
    assert batch["beside"].tolist() == [True, False, False]
    assert bool(batch["displacement"][0].isnan().all())
    assert bool(batch["displacement"][1:].isfinite().all())
    floor, answer = task.baselines()
    assert answer.scores["epe"] == 0.0, "the pair beside has no answer and is in no mean"
    assert answer.scores["beside_dice"] == floor.scores["beside_dice"] < 1.0
    run = train_run("liquidreg", "cured", settings=[REAL, BOTH])
    rows = read_rows(run.evals_csv)
    assert {row["num_failed_batches"] for row in rows} == {"0"}
    assert all(
        math.isfinite(float(row[name])) for row in rows for name in ("dice", "epe", "beside_dice", "beside_lncc")
    )


def test_real_brains_must_have_been_fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path))
    config = make_config("cured", "tiny", REAL, BOTH)
    assert config.data.sources() == ("nilearn", "mricron-data")
    with pytest.raises(DataError, match="run `hpcstab data fetch liquidreg`"):
        Task(config, 0).check_data()


def test_trains_on_a_folder_and_reports_what_was_left_out(train_run: MakeRun, tmp_path: Path) -> None:
    folder = tmp_path / "oasis"
    folder.mkdir()
    for seed in range(5):
        write(folder, "imagesTr", f"s{seed}", image(seed))
        write(folder, "labelsTr", f"s{seed}", regions(seed))
    write(folder, "imagesTr", "alone", np.ones((4, 4, 4), np.float32))
    settings = ["data.source=folder", f"data.folder={folder}"]
    task = Task(make_config("cured", "tiny", *settings), 0)
    train, validation = (task.dataset(split).ids for split in ("train", "validation"))
    subjects = [{part for name in names for part in name.split("_to_")} for names in (train, validation)]
    assert not subjects[0] & subjects[1]
    assert (len(train), len(validation)) == (3, 2)
    (finding,) = task.check_data()
    assert (finding.kind, finding.count) == ("missing", 1)
    assert {metric.name for metric in task.metrics}.isdisjoint({"epe", "reach"})
    assert {m.name for m in task.metrics if m.name.startswith("dice_")} == {"dice_label_1", "dice_label_2"}
    run = train_run("liquidreg", "cured", settings=settings)
    task_json = read_json(run.task_json)
    assert task_json is not None
    assert task_json["data"]["num_left_out"] == 1
    rows = read_rows(run.evals_csv)
    assert {row["num_failed_batches"] for row in rows} == {"0"}
    assert all(math.isfinite(float(row["dice"])) for row in rows)
