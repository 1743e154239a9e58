"""Real fields: parts of a field share no place, gaps lie between them, scaling comes from the training part alone."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from hpcstab.data.fields import FIELDS, read_field
from hpcstab.errors import DataError
from tests.data.stand_ins import density_map, fetched, smooth, swae3d_files


@pytest.fixture
def fetched_fields(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for package, contents in swae3d_files().items():
        fetched(monkeypatch, tmp_path, package, contents)


@pytest.mark.parametrize("name", sorted(FIELDS))
def test_a_gap_of_at_least_four_lies_between_the_parts(name: str) -> None:
    recipe = FIELDS[name]
    assert recipe.train[1] + 4 <= recipe.validation[0]
    assert all((stop - start) % 8 == 0 for start, stop in (recipe.train, recipe.validation))
    assert any(path.endswith(f"/{recipe.file}") for path in recipe.source.members)


@pytest.mark.usefixtures("fetched_fields")
def test_a_density_map_is_split_along_its_sections() -> None:
    field = read_field("density_crystal", 8)
    whole = smooth((70, 20, 16), 0).astype(np.float32)
    ((train_id, train),) = field.volumes["train"]
    ((validation_id, validation),) = field.volumes["validation"]
    assert (train_id, validation_id) == ("density_crystal_t0", "density_crystal_v0")
    np.testing.assert_array_equal(train, whole[:48, :16])
    np.testing.assert_array_equal(validation, whole[54:70, :16])


@pytest.mark.usefixtures("fetched_fields")
def test_weather_is_held_out_by_region_and_by_time() -> None:
    field = read_field("pressure", 8)
    assert [name for name, _ in field.volumes["train"]] == [f"pressure_t{time}" for time in range(5)]
    ((name, validation),) = field.volumes["validation"]
    whole = (97_000.0 + 1000.0 * smooth((6, 10, 83, 17), 3)).astype(np.float32)
    assert name == "pressure_v5"
    np.testing.assert_array_equal(validation, whole[5, :8, 59:83, :16])
    np.testing.assert_array_equal(field.volumes["train"][4][1], whole[4, :8, :48, :16])


@pytest.mark.usefixtures("fetched_fields")
def test_scaling_is_by_the_training_part_alone() -> None:
    field = read_field("theta", 8)
    train = np.stack([volume for _, volume in field.scaled("train")])
    assert (train.min(), train.max()) == pytest.approx((-1.0, 1.0), abs=1e-6)
    raw = np.stack([volume for _, volume in field.volumes["train"]])
    ((_, held_out),), ((_, scaled),) = field.volumes["validation"], field.scaled("validation")
    np.testing.assert_allclose(scaled, (held_out - raw.min()) / (np.ptp(raw) / 2) - 1, atol=1e-4)


@pytest.mark.parametrize("value", [0.0, np.nan, np.inf])
def test_training_values_that_cannot_be_scaled_are_refused(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, value: float
) -> None:
    values = np.zeros((70, 16, 16))
    values[3] = value
    contents = swae3d_files()["griddataformats"] | {"1jzv.ccp4": density_map(values)}
    fetched(monkeypatch, tmp_path, "griddataformats", contents)
    with pytest.raises(DataError, match=r"field density_crystal: its training values span .* so none can be scaled"):
        read_field("density_crystal", 8).scaled("validation")


def test_winds_are_split_by_month(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    months = np.arange(132 * 9 * 16, dtype=np.float32).reshape(1, 132, 9, 16)
    recipe = replace(
        FIELDS["wind_zonal"], package="griddataformats", file="1jzv.ccp4", read=lambda content, file: months
    )
    monkeypatch.setitem(FIELDS, "wind_zonal", recipe)
    fetched(monkeypatch, tmp_path, "griddataformats", swae3d_files()["griddataformats"])
    volumes = read_field("wind_zonal", 8).volumes
    np.testing.assert_array_equal(volumes["train"][0][1], months[0, :96, :8])
    np.testing.assert_array_equal(volumes["validation"][0][1], months[0, 100:, :8])
