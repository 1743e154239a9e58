"""Blocks of the volumes of swae3d as items, and two linear predictors on them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from hpcstab.data.blocks import Shape
from hpcstab.models.swae3d.volumes import Volumes


@dataclass(frozen=True)
class BlockItems:
    """The training items: item i is the block (1, b, b, b) in row i of ``blocks``."""

    blocks: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.blocks[index]

    def __getitems__(self, indices: list[int]) -> list[Tensor]:
        """All items of a batch at once: one gather instead of one read an item."""
        return list(self.blocks[torch.tensor(indices)].unbind())


@dataclass(frozen=True)
class VolumeItems:
    """The held-out items: item i is a whole volume of ``shapes[i]`` as its blocks (N, 1, b, b, b)."""

    volumes: list[Tensor]
    shapes: list[Shape]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.volumes[index]


def training_blocks(volumes: Volumes) -> BlockItems:
    """All blocks of the training volumes, an item a block."""
    blocks, ids = [], []
    for name, volume in volumes.volumes("train"):
        cut = volumes.scaled_blocks(volume)
        blocks.append(cut)
        ids += [f"{name}_b{index:03d}" for index in range(len(cut))]
    return BlockItems(torch.cat(blocks), ids)


def whole_volumes(volumes: Volumes) -> VolumeItems:
    """The validation volumes, an item a volume, since PSNR needs whole volumes."""
    named = list(volumes.volumes("validation"))
    shapes: list[Shape] = [(volume.shape[0], volume.shape[1], volume.shape[2]) for _, volume in named]
    return VolumeItems([volumes.scaled_blocks(volume) for _, volume in named], shapes, [name for name, _ in named])


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
