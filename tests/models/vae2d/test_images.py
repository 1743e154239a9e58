"""The images of vae2d: fetched slices of a head, and a folder of the user's own with good and bad images in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.errors import ConfigError, DataError
from hpcstab.execute import execute
from hpcstab.models.vae2d.config import Config
from hpcstab.models.vae2d.task import Task
from hpcstab.report import write_report
from hpcstab.rundir import read_json
from tests.conftest import MakeRun
from tests.data.stand_ins import fetched, nifti, picture, smooth

REAL = ["data.source=real", "data.image_size=64"]


def config_of(*settings: str) -> Config:
    config = resolve(load_experiment("vae2d"), "before", "tiny", parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return config


def fetch_a_head(monkeypatch: pytest.MonkeyPatch, folder: Path, constant_from: int = 256) -> None:
    """A cube of tissue in a scan of air, 40 slices of it, each of its own grey; at the top they are one value."""
    scan = np.zeros((256, 256, 256), np.uint8)
    scan[28:228, 28:228, 100:140] = np.arange(100, 140)
    scan[:, :, constant_from:140] = 99
    fetched(monkeypatch, folder, "pycortex", {"raw.nii.gz": nifti(scan, np.eye(3, 4))})


def image_folder(folder: Path, num: int = 10) -> Path:
    """Good grey images of 48x48, numbered as in a series."""
    folder.mkdir()
    for index in range(num):
        values = smooth((48, 48), index)
        (folder / f"slice_{index:02d}.png").write_bytes(picture((60.0 * (values + 2.0)).clip(0, 255).astype(np.uint8)))
    return folder


def test_trains_on_real_slices_and_says_so(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, train_run: MakeRun) -> None:
    fetch_a_head(monkeypatch, tmp_path)
    run = train_run("vae2d", "cured", settings=REAL)
    status, task = read_json(run.status_json), read_json(run.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] == "completed"
    facts = task["data"]
    assert facts["source"] == "axial slices of one head, pycortex 1.4.0"
    assert "BSD-2-Clause" in facts["licence"]
    assert (facts["num_train_items"], facts["num_validation_items"], facts["num_subjects"]) == (26, 6, 1)
    assert len(list(run.samples.glob("*.png"))) == 2


def test_held_out_slices_are_shuffled_and_trained_ones_keep_a_gap(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """Pictures show the first held-out images, and neighbours of a series are near-copies."""
    fetch_a_head(monkeypatch, tmp_path)
    orders = []
    for seed in (0, 0, 1):
        task = Task(config_of(*REAL), seed)
        orders.append(list(task.dataset("validation").ids))
        assert min(orders[-1]) == "axial_134"
        assert max(task.dataset("train").ids) == "axial_125"
        for split in ("train", "validation"):
            items = task.dataset(split)  # type: ignore[arg-type]
            for index, name in enumerate(items.ids):
                grey = int(name.removeprefix("axial_"))  # each image still has its own name
                assert float(items[index].max()) == pytest.approx(grey / 255.0)
    assert orders[0] == orders[1] != sorted(orders[0])
    assert sorted(orders[0]) == sorted(orders[2])
    assert orders[0] != orders[2]
    assert Task(config_of(*REAL), 0).check_data() == []


def test_the_check_looks_at_real_slices(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    fetch_a_head(monkeypatch, tmp_path, constant_from=137)
    findings = Task(config_of(*REAL), 0).check_data()
    assert [(finding.kind, finding.split, finding.count) for finding in findings] == [
        ("constant", "validation", 3),
        ("duplicate", "validation", 2),
    ]


def test_without_fetched_data_it_is_one_error_and_no_fallback(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path / "empty"))
    assert config_of(*REAL).data.sources() == ("pycortex",)
    assert config_of().data.sources() == ()
    run = make_run("vae2d", "before", settings=REAL)
    with pytest.raises(DataError, match="run `hpcstab data fetch vae2d`") as caught:
        execute(run, 1)
    assert caught.value.exit_code == 3


def test_trains_on_a_folder_and_counts_what_it_leaves_out(train_run: MakeRun, tmp_path: Path) -> None:
    """A finding of each kind reaches `data check`, and what was left out stands in task.json and in the report."""
    folder = image_folder(tmp_path / "mine")
    (folder / "corrupt.png").write_bytes(b"no picture")
    (folder / "large.png").write_bytes(picture(np.arange(50 * 50, dtype=np.uint16).reshape(50, 50).astype(np.uint8)))
    (folder / "colour.png").write_bytes(picture(np.zeros((48, 48, 3), np.uint8)))
    (folder / "constant.png").write_bytes(picture(np.full((48, 48), 7, np.uint8)))
    np.save(folder / "nan.npy", np.full((48, 48), np.nan))
    np.save(folder / "integers.npy", np.zeros((48, 48), np.int32))
    (folder / "slice_00_again.png").write_bytes((folder / "slice_00.png").read_bytes())
    settings = ["data.source=folder", f"data.folder={folder}"]

    findings = Task(config_of(*settings), 0).check_data()
    assert {(finding.kind, finding.split): finding.count for finding in findings} == {
        ("unreadable", "all"): 1,
        ("shape", "all"): 2,
        ("constant", "all"): 1,
        ("non_finite", "all"): 1,
        ("dtype", "all"): 1,
        ("duplicate", "train"): 1,
    }

    run = train_run("vae2d", "cured", settings=settings)
    status, task = read_json(run.status_json), read_json(run.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] == "completed"
    facts = task["data"]
    assert (facts["num_left_out"], facts["num_train_items"], facts["num_validation_items"]) == (6, 9, 2)
    assert (facts["num_distinct_train_items"], facts["source"]) == (8, f"images of {folder}")
    write_report([run], tmp_path / "report")
    page = (tmp_path / "report" / "report.md").read_text()
    assert "1 of 17 images cannot be read, left out: corrupt.png" in page
    assert "1 of 17 images are constant, left out: constant.png" in page


def test_the_last_images_of_a_folder_are_held_out(tmp_path: Path) -> None:
    folder = image_folder(tmp_path / "mine")
    task = Task(config_of("data.source=folder", f"data.folder={folder}"), 0)
    assert task.dataset("train").ids == [f"slice_{index:02d}.png" for index in range(8)]
    assert set(task.dataset("validation").ids) == {"slice_08.png", "slice_09.png"}
    assert task.check_data() == []
    floor = task.baselines()[0]
    assert torch.isfinite(torch.tensor(list(floor.scores.values()))).all()


def test_an_empty_folder_is_one_error(make_run: MakeRun, tmp_path: Path) -> None:
    (tmp_path / "none").mkdir()
    run = make_run("vae2d", "before", settings=["data.source=folder", f"data.folder={tmp_path / 'none'}"])
    with pytest.raises(DataError, match="holds no image; read are"):
        execute(run, 1)
    status = read_json(run.status_json)
    assert status is not None
    assert status["state"] == "failed"


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.source=folder"], r"folder is null: name the folder of your images, data\.folder=PATH"),
        (["data.folder=mine"], "which source synthetic does not read: set source to folder"),
        (["data.source=photos"], "'synthetic', 'real' or 'folder'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        config_of(*settings)
