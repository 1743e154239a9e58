"""wavessm on photographs, from stand-in archives, and on a folder of the user's own."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from hpcstab.errors import ConfigError, DataError
from hpcstab.execute import execute
from hpcstab.models.wavessm.task import Task
from hpcstab.rundir import read_json
from tests.conftest import MakeRun
from tests.data.stand_ins import fetched, picture, wavessm_files
from tests.models.wavessm.test_task import CONTEXT, make_config

REAL = "data.source=real"


@pytest.fixture
def _fetched(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in wavessm_files().items():
        fetched(monkeypatch, tmp_path, package, contents)


def make_task(*settings: str, seed: int = 0) -> Task:
    return Task(make_config("before", "tiny", *settings), seed)


def write_images(folder: Path, num: int, size: int = 16) -> None:
    generator = np.random.default_rng(0)
    for index in range(num):
        pixels = generator.integers(0, 255, (size, size, 3), dtype=np.uint8)
        (folder / f"{index}.png").write_bytes(picture(pixels))


@pytest.mark.usefixtures("_fetched")
def test_trains_on_tiles_and_says_what_they_are(train_run: MakeRun) -> None:
    run = train_run("wavessm", "cured", settings=[REAL])
    status, task = read_json(run.status_json), read_json(run.task_json)
    assert status is not None
    assert task is not None
    assert status["state"] == "completed"
    facts = task["data"]
    assert facts["source"] == "photographs: scikit-image and scikit-learn to train, sporco held out"
    assert facts["split"] == "by photograph"
    assert facts["unused_keys"] == "data.num_samples, data.train_split"
    assert (facts["num_train_images"], facts["num_validation_images"]) == (
        9 * 6 + 3 * 1,
        5 * 6,
    )  # three JPEGs at half size
    assert {"licence", "archive_sha256"} <= set(facts)
    assert len(list(run.samples.glob("*.png"))) == 4


@pytest.mark.usefixtures("_fetched")
def test_no_photograph_and_no_corruption_is_in_both_splits() -> None:
    task = make_task(REAL)
    train, validation = task.dataset("train"), task.dataset("validation")
    photographs = [{name.rsplit("_", 2)[0] for name in pairs.ids} for pairs in (train, validation)]
    assert photographs[1] == {"barbara", "kodim23", "monarch", "sail", "tulips"}
    assert not photographs[0] & photographs[1]
    masks = [pairs[index]["mask"].numpy().tobytes() for pairs in (train, validation) for index in range(len(pairs))]
    assert len(set(masks)) == len(masks), "a corruption is its image's alone"
    assert task.check_data() == []


@pytest.mark.usefixtures("_fetched")
def test_seeds_share_the_tiles_and_not_the_corruptions() -> None:
    """An evaluation may look at the first 50, so these are of all photographs and the same for all seeds."""
    first, second = (make_task(REAL, seed=seed).dataset("validation") for seed in (0, 1))
    assert first.ids == second.ids
    assert first.ids != sorted(first.ids)
    assert first[0]["clean"].equal(second[0]["clean"])
    assert not first[0]["corrupted"].equal(second[0]["corrupted"])


@pytest.mark.parametrize("num", [2, 12])
def test_the_floor_is_taken_over_what_an_evaluation_looks_at(num: int) -> None:
    """It was taken over all held-out images, while the metrics were of the first `trainer.max_eval_samples`."""
    task = make_task("data.num_samples=40", f"trainer.max_eval_samples={num}")
    validation = task.dataset("validation")
    assert len(validation) == 10
    looked_at = torch.utils.data.default_collate([validation[index] for index in range(min(num, 10))])
    totals = task.evaluate(nn.Identity(), looked_at, CONTEXT)
    scores = task.summarize({name: float(part.value) for name, part in totals.items()})
    (floor,) = task.baselines()
    assert floor.scores == pytest.approx(scores, rel=1e-6)
    assert task.data_facts()["num_evaluated_images"] == min(num, 10)


def test_without_fetched_photographs_it_is_one_error_and_no_fallback(
    make_run: MakeRun, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HPCSTAB_DATA", str(tmp_path / "empty"))
    run = make_run("wavessm", "before", settings=[REAL])
    with pytest.raises(DataError, match="run `hpcstab data fetch wavessm`") as caught:
        execute(run, 1)
    assert caught.value.exit_code == 3


def test_the_config_names_its_sources() -> None:
    assert make_config("before", "tiny", REAL).data.sources() == ("scikit-image", "scikit-learn", "sporco")
    assert make_config().data.sources() == ()


def test_bad_images_of_a_folder_are_left_out_named_and_counted(tmp_path: Path) -> None:
    write_images(tmp_path, 6)
    (tmp_path / "a_corrupt.png").write_bytes(b"no picture")
    (tmp_path / "b_grey.png").write_bytes(picture(np.eye(16, dtype=np.uint8)))
    (tmp_path / "c_flat.png").write_bytes(picture(np.full((16, 16, 3), 7, np.uint8)))
    np.save(tmp_path / "d_nan.npy", np.full((16, 16, 3), np.nan))
    task = make_task("data.source=folder", f"data.folder={tmp_path}")
    assert (len(task.dataset("train")), len(task.dataset("validation"))) == (4, 2)
    assert {finding.kind: finding.count for finding in task.check_data()} == {
        "unreadable": 1,
        "shape": 1,
        "constant": 1,
        "non_finite": 1,
    }
    data = make_config("before", "tiny", "data.source=folder", f"data.folder={tmp_path}").data
    assert data.folders() == {str(tmp_path): "images"}
    facts = task.data_facts()
    assert (facts["num_left_out"], facts["unused_keys"]) == (4, "data.num_samples")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        (["data.source=folder"], ConfigError, "name the folder of your images"),
        (["data.folder=pictures"], ConfigError, "which source synthetic does not read"),
        (["data.source=folder", "data.folder={empty}"], DataError, "holds no image"),
        (["data.source=folder", "data.folder={large}"], DataError, r"6 of 6 images have another size.*\(24, 24, 3\)"),
    ],
)
def test_a_folder_that_cannot_be_used_is_refused(
    tmp_path: Path, settings: list[str], error: type[Exception], message: str
) -> None:
    for name in ("empty", "large"):
        (tmp_path / name).mkdir()
    write_images(tmp_path / "large", 6, 24)
    paths = {"empty": tmp_path / "empty", "large": tmp_path / "large"}
    with pytest.raises(error, match=message):
        make_task(*(setting.format(**paths) for setting in settings))
