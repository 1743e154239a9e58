"""Function volumes of swae3d, their split, their blocks, and the scores of two baselines on them."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.functions import (
    SineProduct,
    from_blocks,
    repeated_functions,
    split_by_combination,
    to_blocks,
    varied_functions,
)
from hpcstab.models.swae3d.config import Config
from hpcstab.seeds import keyed_seed
from hpcstab.task import Split

Volume = NDArray[np.float32]


class FunctionVolumes:
    """All volumes of a run, split by volume; blocks are scaled to [-1, 1] by the training range."""

    def __init__(self, config: Config, seed: int) -> None:
        self._data = config.data
        self.block_size = config.network.block_size
        self._seed = seed

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
        """(id, volume (R, R, R)) of a split; an id names wave numbers, so that a copy can be seen."""
        for volume_id in self.ids[split]:
            waves = "".join(str(number) for number in self.functions[volume_id].wave_numbers)
            yield f"v{volume_id:04d}_k{waves}", self.functions[volume_id].volume(self._data.resolution)

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

    def restore(self, blocks: Tensor) -> Volume:
        """The volume (R, R, R) in its own unit from its scaled blocks (N, 1, b, b, b)."""
        low, high = self.training_range
        scaled = from_blocks(blocks.detach().float().cpu().numpy(), self._data.resolution)
        return (scaled + 1.0) * ((high - low) / 2.0) + low


@dataclass(frozen=True)
class BlockItems:
    """Items are rows of ``blocks``: a block (1, b, b, b) in training, a whole volume (N, 1, b, b, b) in validation."""

    blocks: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.blocks[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """All items of a batch at once: one gather instead of one read an item."""
        return list(self.blocks[torch.tensor(indices)].unbind())


def training_blocks(data: FunctionVolumes) -> BlockItems:
    """All blocks of the training volumes, an item a block."""
    blocks, ids = [], []
    for name, volume in data.volumes("train"):
        cut = data.scaled_blocks(volume)
        blocks.append(cut)
        ids += [f"{name}_b{index:03d}" for index in range(len(cut))]
    return BlockItems(torch.cat(blocks), ids)


def whole_volumes(data: FunctionVolumes) -> BlockItems:
    """The validation volumes, an item a volume, since PSNR needs whole volumes."""
    named = [(name, data.scaled_blocks(volume)) for name, volume in data.volumes("validation")]
    return BlockItems(torch.stack([blocks for _, blocks in named]), [name for name, _ in named])


def mean_block(training: BlockItems) -> Tensor:
    """What a network that learned nothing but the mean would answer: (1, 1, b, b, b), one value everywhere."""
    return training.blocks.mean().expand(1, *training.blocks.shape[1:])


def block_pca(training: BlockItems, num_components: int) -> Callable[[Tensor], Tensor]:
    """A function blocks (N, 1, b, b, b) -> their reconstruction from the leading principal components.

    The linear method at the network's own code size, fitted on the training blocks.
    """
    flat = training.blocks.flatten(1).double()
    mean = flat.mean(0)
    centred = flat - mean
    _, vectors = torch.linalg.eigh(centred.T @ centred)  # ascending: the leading components are last
    basis = vectors[:, -num_components:]

    def reconstruct(blocks: Tensor) -> Tensor:
        codes = (blocks.flatten(1).double() - mean) @ basis
        rebuilt: Tensor = (codes @ basis.T + mean).float().reshape(blocks.shape)
        return rebuilt

    return reconstruct
