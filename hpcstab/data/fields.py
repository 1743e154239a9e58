"""Real fields: float32 volumes of density and weather, each split by region or time with a gap between the parts.

A random block has its neighbours in training, so no split is by block. The volumes of theta and of pressure are minutes
apart and near-copies of each other: they are held out by region and by time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.blocks import crop
from hpcstab.data.formats.ccp4 import read_density_map
from hpcstab.data.formats.netcdf import read_variable
from hpcstab.data.formats.pp import read_pp, stack_volumes
from hpcstab.data.sources import SOURCES, read_member
from hpcstab.data.sources.source import Source
from hpcstab.errors import DataError
from hpcstab.task import Split

Volume = NDArray[np.float32]
_THETA, _PRESSURE = 4, 408  # STASH codes


@dataclass(frozen=True)
class Recipe:
    """Where a field is, and how it is split.

    ``read``: content and name of the file -> volumes (T, D, H, W) at T times. ``axis`` of (D, H, W) is cut into the
    ranges ``train`` and ``validation``; the volumes before ``last_times`` from the end are trained on, those after it
    are held out, and with 0 all are both. ``limits``: what its values can be, in the unit of the file.
    """

    package: str
    file: str
    read: Callable[[bytes, str], Volume]
    limits: tuple[float, float]
    axis: int
    train: tuple[int, int]
    validation: tuple[int, int]
    last_times: int = 0

    @property
    def source(self) -> Source:
        return SOURCES[self.package]


@dataclass(frozen=True)
class Field:
    """A field as (id, volume (D, H, W)) by split, in its own unit; edges are multiples of the block."""

    name: str
    recipe: Recipe
    volumes: dict[Split, list[tuple[str, Volume]]]

    def scaled(self, split: Split) -> list[tuple[str, Volume]]:
        """The volumes of a split with the range of the training volumes as [-1, 1].

        Raises:
            DataError: the training volumes are constant or not finite.
        """
        low = min(float(volume.min()) for _, volume in self.volumes["train"])
        high = max(float(volume.max()) for _, volume in self.volumes["train"])
        if not low < high < np.inf or low == -np.inf:
            raise DataError(f"field {self.name}: its training values span {low:g} to {high:g}, so none can be scaled")
        half = (high - low) / 2.0
        return [(name, ((volume - low) / half - 1.0).astype(np.float32)) for name, volume in self.volumes[split]]


def read_field(name: str, block_size: int) -> Field:
    """A field from the cache.

    Raises:
        DataError: its source was not fetched, or is not as pinned.
    """
    recipe = FIELDS[name]
    volumes = recipe.read(read_member(recipe.source, recipe.file), recipe.file)
    cut = len(volumes) - recipe.last_times
    times = {"train": range(cut), "validation": range(cut if recipe.last_times else 0, len(volumes))}
    ranges = {"train": recipe.train, "validation": recipe.validation}

    def part(split: Split) -> list[tuple[str, Volume]]:
        region = (slice(None),) * recipe.axis + (slice(*ranges[split]),)
        letter = "t" if split == "train" else "v"
        return [(f"{name}_{letter}{time}", crop(volumes[time][region], block_size)) for time in times[split]]

    return Field(name, recipe, {"train": part("train"), "validation": part("validation")})


def _density(content: bytes, file: str) -> Volume:
    return read_density_map(content, file)[None]


def _weather(content: bytes, file: str, quantity: int) -> Volume:
    return stack_volumes(read_pp(content, file), quantity, file)


def _wind(content: bytes, file: str, variable: str) -> Volume:
    return read_variable(content, variable, file)[None]


def _wind_recipe(variable: str) -> Recipe:
    """Months 0-95 are trained on, 100-131 held out."""
    file, read = "monthly_navy_winds.cdf", partial(_wind, variable=variable)
    return Recipe("ferret-datasets", file, read, (-80.0, 80.0), 0, (0, 96), (100, 132))


def _weather_recipe(quantity: int, limits: tuple[float, float]) -> Recipe:
    """Five times of the first rows are trained on; held out are rows at least 11 further at the sixth time."""
    read = partial(_weather, quantity=quantity)
    return Recipe("iris-sample-data", "colpex.pp", read, limits, 1, (0, 48), (59, 83), last_times=1)


FIELDS: dict[str, Recipe] = {
    "density_crystal": Recipe("griddataformats", "1jzv.ccp4", _density, (-10.0, 60.0), 0, (0, 48), (54, 70)),
    # of 97 sections the outer ones are empty: half the particle is trained on, a part of the other half held out
    "density_particle": Recipe("griddataformats", "ispg_0.mrc", _density, (-10.0, 60.0), 0, (0, 48), (56, 80)),
    "theta": _weather_recipe(_THETA, (180.0, 400.0)),  # kelvin
    "pressure": _weather_recipe(_PRESSURE, (1.0e4, 1.1e5)),  # pascal
    "wind_zonal": _wind_recipe("UWND"),
    "wind_meridional": _wind_recipe("VWND"),
}
