"""Pairs of liquidreg as items of a split."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.registration import Normalization, Pair, normalized
from hpcstab.models.liquidreg.pairs import PairSource
from hpcstab.task import Split


@dataclass(frozen=True)
class Pairs:
    """The pairs of a split, made when they are first asked for; each stands in one split.

    An item: ``fixed`` and ``moving`` (1, D, H, W) float32, ``fixed_labels`` and ``moving_labels`` (1, D, H, W) uint8,
    ``displacement`` (3, D, H, W) float32, in voxels, from fixed to moving, NaN where nobody knows it; ``beside``, true
    for a pair that is looked at beside the others and is in no mean with them.
    """

    source: PairSource
    split: Split
    normalize: Normalization
    _made: dict[int, dict[str, Tensor]] = field(default_factory=dict, repr=False)

    @property
    def ids(self) -> list[str]:
        return self.source.names(self.split)

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        if index not in self._made:
            pair = self.source.pair(self.split, index)
            beside = self.ids[index] in self.source.beside
            self._made[index] = {**_as_tensors(pair, self.normalize), "beside": torch.tensor(beside)}
        return self._made[index]

    def fixed_volumes(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, intensities (D, H, W) in their own unit) of every pair, for the data check."""
        for index, name in enumerate(self.ids):
            yield name, self.source.pair(self.split, index).fixed.intensities


def _as_tensors(pair: Pair, normalize: Normalization) -> dict[str, Tensor]:
    shape = pair.fixed.intensities.shape
    known = pair.displacement if pair.displacement is not None else np.full((3, *shape), np.nan, np.float32)
    return {
        "fixed": torch.from_numpy(normalized(pair.fixed.intensities, normalize))[None],
        "moving": torch.from_numpy(normalized(pair.moving.intensities, normalize))[None],
        "fixed_labels": torch.from_numpy(pair.fixed.labels)[None],
        "moving_labels": torch.from_numpy(pair.moving.labels)[None],
        "displacement": torch.from_numpy(known),
    }
