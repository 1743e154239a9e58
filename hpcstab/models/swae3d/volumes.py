"""The volumes of a run, split by volume: seeded functions, or real fields that were fetched."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.blocks import Shape, from_blocks, to_blocks
from hpcstab.data.checks import check_arrays
from hpcstab.data.fields import Field, read_field
from hpcstab.data.functions import SineProduct, repeated_functions, split_by_combination, varied_functions
from hpcstab.data.sources import provenance
from hpcstab.models.swae3d.config import Config, Data
from hpcstab.seeds import keyed_seed
from hpcstab.task import DataFinding, Split

Volume = NDArray[np.float32]


class Volumes(ABC):
    """All volumes of a run; blocks are scaled to [-1, 1] by the training range."""

    def __init__(self, data: Data, block_size: int, seed: int) -> None:
        self._data = data
        self._seed = seed
        self.block_size = block_size

    @abstractmethod
    def volumes(self, split: Split) -> Iterator[tuple[str, Volume]]:
        """(id, volume (D, H, W)) of a split."""

    @abstractmethod
    def check(self) -> list[DataFinding]:
        """What is wrong with the volumes."""

    @abstractmethod
    def provenance(self) -> Mapping[str, str]:
        """Where they come from, in words."""

    @cached_property
    def training_range(self) -> tuple[float, float]:
        """Lowest and highest value of all training volumes."""
        extremes = [(float(volume.min()), float(volume.max())) for _, volume in self.volumes("train")]
        return min(low for low, _ in extremes), max(high for _, high in extremes)

    def scaled_blocks(self, volume: Volume) -> Tensor:
        """Blocks (N, 1, b, b, b) in [-1, 1] where the volume lies in the training range."""
        low, high = self.training_range
        scaled = (volume - low) * (2.0 / (high - low)) - 1.0
        return torch.from_numpy(to_blocks(scaled.astype(np.float32), self.block_size))

    def restore(self, blocks: Tensor, shape: Shape) -> Volume:
        """The volume of ``shape`` (D, H, W) in its own unit from its scaled blocks (N, 1, b, b, b)."""
        low, high = self.training_range
        scaled = from_blocks(blocks.detach().float().cpu().numpy(), shape)
        return (scaled + 1.0) * ((high - low) / 2.0) + low


class FunctionVolumes(Volumes):
    """Seeded products of sines on a cube."""

    @cached_property
    def functions(self) -> list[SineProduct]:
        if self._data.functions == "repeated":
            return repeated_functions(self._data.num_samples, self._data.wave_numbers)
        return varied_functions(self._data.num_samples, self._data.wave_numbers, self._seed)

    @cached_property
    def ids(self) -> dict[Split, list[int]]:
        """Volume ids by split: whole combinations held out, or, for the write-up's set, its random split."""
        if self._data.functions == "varied":
            train, validation = split_by_combination(self.functions, self._data.train_split, self._seed)
        else:
            order = np.random.default_rng(keyed_seed(self._seed, "split")).permutation(len(self.functions))
            num_train = min(len(order) - 1, max(1, round(self._data.train_split * len(order))))
            train, validation = sorted(order[:num_train].tolist()), sorted(order[num_train:].tolist())
        return {"train": train, "validation": validation}

    def volumes(self, split: Split) -> Iterator[tuple[str, Volume]]:
        """An id names wave numbers, so that a copy can be seen."""
        for volume_id in self.ids[split]:
            waves = "".join(str(number) for number in self.functions[volume_id].wave_numbers)
            yield f"v{volume_id:04d}_k{waves}", self.functions[volume_id].volume(self._data.resolution)

    def check(self) -> list[DataFinding]:
        splits: tuple[Split, ...] = ("train", "validation")
        samples = {str(split): self.volumes(split) for split in splits}
        return check_arrays(samples, (self._data.resolution,) * 3, (-1.0, 1.0))

    def provenance(self) -> Mapping[str, str]:
        return {"source": f"seeded synthetic functions ({self._data.functions})"}


class RealVolumes(Volumes):
    """Fetched fields. Each is scaled by its own training part: their units differ, and so no other unit is common."""

    @cached_property
    def fields(self) -> list[Field]:
        return [read_field(name, self.block_size) for name in self._data.fields]

    def volumes(self, split: Split) -> Iterator[tuple[str, Volume]]:
        for field in self.fields:
            yield from field.scaled(split)

    def check(self) -> list[DataFinding]:
        findings = []
        for field in self.fields:
            samples = {str(split): named for split, named in field.volumes.items()}
            findings += check_arrays(samples, None, field.recipe.limits)
        return findings

    def provenance(self) -> Mapping[str, str]:
        sources = {field.recipe.package: field.recipe.source for field in self.fields}
        return {
            "source": "real fields: "
            + "; ".join(
                f"{', '.join(f.name for f in self.fields if f.recipe.package == package)} of {source.release}"
                for package, source in sources.items()
            ),
            **provenance(sources.values()),
            "unit": "half the range of each field's training volumes",
        }


def volumes_of(config: Config, seed: int) -> Volumes:
    """The volumes that ``data.source`` asks for."""
    kind = RealVolumes if config.data.source == "real" else FunctionVolumes
    return kind(config.data, config.network.block_size, seed)
