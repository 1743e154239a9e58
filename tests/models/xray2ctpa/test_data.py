"""Pairs as items: patches, films, splits, constant patches, and the three sources."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from hpcstab.data.thorax import thorax
from hpcstab.errors import ConfigError
from hpcstab.models.xray2ctpa.data import Pairs, chests_of, make_chest
from hpcstab.models.xray2ctpa.evaluation import films_of, mean_patches, whole
from hpcstab.models.xray2ctpa.projection import project
from hpcstab.models.xray2ctpa.task import Task
from tests.data.test_chest_scans import stand_ins, write_pair  # noqa: F401 - a fixture
from tests.models.xray2ctpa.making import make_config, make_task, validation_batch


def pairs_of(*settings: str) -> Pairs:
    data = make_config("before", "tiny", *settings).data
    return Pairs(data, chests_of(data, 0))


def test_items_of_both_splits() -> None:
    pairs = pairs_of()
    item, volume = pairs.train[3], pairs.validation[0]
    assert len(pairs.train) == 5 * 8
    assert {name: tuple(value.shape) for name, value in item.items()} == {
        "volume": (1, 16, 16, 16),
        "xray": (1, 16, 16),
        "places": (2, 3),
        "number": (),
        "constant": (),
    }
    assert tuple(volume["volume"].shape) == (8, 1, 16, 16, 16)
    assert not {name.split("_")[0] for name in pairs.train.ids} & set(pairs.validation.ids)
    stacked = torch.stack([each["volume"] for each in pairs.train.items])
    assert (float(stacked.min()), float(stacked.max())) == (0.0, 1.0)


def test_patches_lie_where_they_say() -> None:
    """The volume, put together again, is the chest; a patch's corners are those of its voxels."""
    pairs = pairs_of()
    chest, item = pairs.chests.splits["validation"][0], pairs.validation[0]
    rebuilt = whole(item["volume"][None], 32)[0, 0].numpy()
    low, high = item["range_hu"].tolist()
    np.testing.assert_allclose(rebuilt * (high - low) + low, chest.volume, atol=0.01)
    for patch, (first, last) in zip(item["volume"], item["places"], strict=True):
        start, end = (((corner + 1) * 16).int().tolist() for corner in (first, last))
        part = rebuilt[start[0] : end[0], start[1] : end[1], start[2] : end[2]]
        np.testing.assert_array_equal(patch[0].numpy(), part)


def test_a_film_is_made_of_its_ct() -> None:
    batch = validation_batch(make_task())
    films = films_of(whole(batch["volume"], 32), batch)
    torch.testing.assert_close(films, batch["xray"], rtol=1e-4, atol=1e-5)


def test_absorption_by_hand() -> None:
    """1 - exp(-0.35 x 0.02/mm x thickness) of water; air absorbs nothing; the right lies on the left."""
    volume = torch.full((1, 1, 4, 4, 4), -1000.0)
    volume[0, 0, 3, :2, 0] = 0.0  # water, rightmost and lowest, two voxels deep
    film = project(volume, torch.tensor([[10.0]]), 4)[0, 0]
    assert float(film[3, 0]) == pytest.approx(1 - np.exp(-0.35 * 0.02 * 20.0), rel=1e-5)
    assert float(film.sum() - film[3, 0]) == 0.0


def test_lungs_are_dark_on_the_film() -> None:
    film = make_chest("c", thorax(32, 0, 0), 10.0, 32).xray
    assert film[12, 8] < film[12, 16] - 0.1 > film[12, 24] - 0.1
    assert film.max() < 1.0


@pytest.mark.parametrize(
    ("constant", "num_items", "value"), [("raw", 40, -1000.0), ("half", 40, 0.5), ("drop", 24, None)]
)
def test_constant_patches(constant: str, num_items: int, value: float | None) -> None:
    pairs = pairs_of("data.num_constant=2", f"data.constant={constant}")
    assert len(pairs.train) == num_items
    assert pairs.num_constant == 16
    assert pairs.num_dropped == (16 if constant == "drop" else 0)
    flat = [item for item in pairs.train.items if item["volume"].min() == item["volume"].max()]
    assert {float(item["volume"].max()) for item in flat} == ({value} if value is not None else set())
    assert sum(bool(item["constant"]) for item in pairs.train.items) == (16 if constant == "half" else 0)
    assert [int(item["number"]) for item in pairs.train.items] == list(range(num_items))


def test_constant_volumes_are_found_by_the_check() -> None:
    findings = make_task("before+constant_volumes").check_data()
    assert [(finding.kind, finding.count) for finding in findings] == [("constant", 2), ("duplicate", 1)]


def test_mean_patches_are_means_by_place() -> None:
    pairs = pairs_of()
    volumes = torch.stack(_scaled(pairs))
    expected = whole(mean_patches(pairs.train)[None], 32)[0, 0]
    torch.testing.assert_close(volumes.mean(0), expected, rtol=1e-4, atol=1e-5)


def _scaled(pairs: Pairs) -> list[torch.Tensor]:
    made = []
    for chest in pairs.chests.splits["train"]:
        low, high = chest.volume.min(), chest.volume.max()
        made.append(torch.from_numpy((chest.volume - low) / (high - low)))
    return made


@pytest.mark.usefixtures("stand_ins")
def test_real_scans_as_data() -> None:
    task = Task(make_config("cured", "tiny", "data.source=real", "data.num_samples=2"), 0)
    assert task.check_data() == []
    assert len(task.dataset("train")) + task._pairs.num_dropped == 2 * 8  # type: ignore[attr-defined]
    assert list(task.dataset("validation").ids) == ["lung1_image", "lung2_image"]
    assert "three patients" in str(task.data_facts()["source"])


def test_a_folder_as_data(tmp_path: Path) -> None:
    for number in range(3):
        write_pair(tmp_path, f"p{number}", number)
    write_pair(tmp_path, "alone", film=False)
    task = Task(make_config("cured", "tiny", "data.source=folder", f"data.folder={tmp_path}"), 0)
    assert list(task.dataset("validation").ids) == ["p2"]
    (finding,) = task.check_data()
    assert (finding.kind, finding.count) == ("unreadable", 1)
    film = task.dataset("train")[0]["xray"]
    assert (tuple(film.shape), float(film.min()) >= 0, float(film.max()) <= 1) == ((1, 16, 16), True, True)


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (["data.volume_size=33"], "cannot be cut into data.patches_per_axis 2"),
        (["data.volume_size=24"], "make it a multiple of 16"),
        (["data.source=folder"], "name the folder of your pairs, data.folder=PATH"),
        (["network.zero_terminal_snr=true"], "needs network.prediction v"),
        (["network.sampler=ddpm"], "ddpm takes all 20 steps"),
        (["losses.weights.adversarial=0.1"], "belong together"),
    ],
)
def test_configs_that_cannot_be_trained_say_why(settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_config("before", "tiny", *settings)
