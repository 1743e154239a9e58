"""Pairs of liquidreg as items of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.brains import random_brain
from hpcstab.data.diffeomorphisms import random_flow
from hpcstab.data.registration import Pair, normalized, synthetic_pair
from hpcstab.models.liquidreg.config import Data
from hpcstab.seeds import keyed_seed
from hpcstab.task import Split


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split, made when they are first asked for; each stands in one split.

    An item: ``fixed`` and ``moving`` (1, D, H, W) float32, ``fixed_labels`` and ``moving_labels`` (1, D, H, W) uint8,
    ``displacement`` (3, D, H, W) float32, in voxels, from fixed to moving.
    """

    data: Data
    seed: int
    numbers: tuple[int, ...]
    _made: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def ids(self) -> list[str]:
        return [f"p{number:05d}" for number in self.numbers]

    def __len__(self) -> int:
        return len(self.numbers)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in self._made:
            self._made[index] = _as_item(self.pair(index), self.data)
        return self._made[index]

    def pair(self, index: int) -> Pair:
        """The pair in its own units."""
        generator = np.random.default_rng(keyed_seed(self.seed, "pair", self.numbers[index]))
        brain = random_brain(self.data.edge, generator)
        largest = self.data.largest_velocity * generator.uniform(0.5, 1.0)
        return synthetic_pair(brain, random_flow((self.data.edge,) * 3, largest, generator))

    def volumes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, intensities (D, H, W)) of both volumes of every pair, for the data check."""
        for index, name in enumerate(self.ids):
            pair = self.pair(index)
            yield f"{name}_fixed", pair.fixed.intensities
            yield f"{name}_moving", pair.moving.intensities


def split_pairs(data: Data, seed: int) -> dict[Split, Pairs]:
    """The pairs of a run, held out by pair in a seeded order."""
    order = np.random.default_rng(keyed_seed(seed, "split")).permutation(data.num_samples)
    num_train = min(data.num_samples - 1, max(1, round(data.train_split * data.num_samples)))
    parts: dict[Split, NDArray[np.int64]] = {"train": order[:num_train], "validation": order[num_train:]}
    return {split: Pairs(data, seed, tuple(sorted(part.tolist()))) for split, part in parts.items()}


def _as_item(pair: Pair, data: Data) -> dict[str, Tensor]:
    assert pair.displacement is not None
    return {
        "fixed": torch.from_numpy(normalized(pair.fixed.intensities, data.normalize))[None],
        "moving": torch.from_numpy(normalized(pair.moving.intensities, data.normalize))[None],
        "fixed_labels": torch.from_numpy(pair.fixed.labels)[None],
        "moving_labels": torch.from_numpy(pair.moving.labels)[None],
        "displacement": torch.from_numpy(pair.displacement),
    }
