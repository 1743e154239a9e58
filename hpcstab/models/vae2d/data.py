"""The images of vae2d, their split, and two predictors that learned nothing of what a network could."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.lungs import chest_film
from hpcstab.models.vae2d.config import Data
from hpcstab.seeds import keyed_seed
from hpcstab.task import Split


@dataclass(frozen=True)
class Films:
    """Items are images (1, N, N), float32 in [0, 1]; they are kept as the bytes (S, N, N) that they were read from."""

    pixels: Tensor
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> Tensor:
        return self.batch(slice(index, index + 1))[0]

    def batch(self, indices: slice) -> Tensor:
        """Images (B, 1, N, N)."""
        return self.pixels[indices].unsqueeze(1).float() / 255.0

    def chunks(self, size: int = 64) -> Iterator[Tensor]:
        """All images, as batches."""
        for first in range(0, len(self), size):
            yield self.batch(slice(first, first + size))


class ChestFilms:
    """All films of a run, split at random by film: each is a chest of its own."""

    def __init__(self, data: Data, seed: int) -> None:
        self._data = data
        self._seed = seed

    @cached_property
    def numbers(self) -> dict[Split, list[int]]:
        """Numbers of the films by split."""
        num = self._data.num_samples
        order = np.random.default_rng(keyed_seed(self._seed, "split")).permutation(num).tolist()
        num_train = min(num - 1, max(1, round(self._data.train_split * num)))
        return {"train": sorted(order[:num_train]), "validation": sorted(order[num_train:])}

    @cached_property
    def train(self) -> Films:
        return self._films("train")

    @cached_property
    def validation(self) -> Films:
        return self._films("validation")

    def named(self, split: Split) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, film (N, N) in [0, 1]) of a split."""
        films = self.train if split == "train" else self.validation
        for index, name in enumerate(films.ids):
            yield name, films[index][0].numpy()

    def _films(self, split: Split) -> Films:
        numbers = self.numbers[split]
        films = [chest_film(self._data.image_size, self._seed, number) for number in numbers]
        return Films(torch.from_numpy(np.stack(films)), [f"film_{number:05d}" for number in numbers])


def mean_image(films: Films) -> Tensor:
    """(1, 1, N, N): the best answer of a network that looks at nothing."""
    total = torch.stack([chunk.double().sum(0) for chunk in films.chunks()]).sum(0)
    return (total / len(films)).float().unsqueeze(0)


def block_pca(films: Films, block_size: int, num_components: int) -> Callable[[Tensor], Tensor]:
    """A function images (B, 1, N, N) -> their reconstruction from the leading components of each block.

    The linear method with the network's own latents: as many numbers for each block of 32x32 pixels as the latent grid
    has channels, fitted on the training films.
    """
    count, total, products = 0, torch.zeros(block_size**2).double(), torch.zeros(block_size**2, block_size**2).double()
    for chunk in films.chunks():
        blocks = _to_blocks(chunk, block_size)
        count += len(blocks)
        total += blocks.double().sum(0)
        products += (blocks.T @ blocks).double()
    mean = total / count
    _, vectors = torch.linalg.eigh(products / count - mean.outer(mean))  # ascending: the leading ones are last
    basis, centre = vectors[:, -num_components:].float(), mean.float()

    def reconstruct(images: Tensor) -> Tensor:
        codes = (_to_blocks(images, block_size) - centre) @ basis
        return _from_blocks(codes @ basis.T + centre, images.shape)

    return reconstruct


def _to_blocks(images: Tensor, size: int) -> Tensor:
    """(B, 1, N, N) -> (B * (N / size)^2, size^2)."""
    tiles = images[:, 0].unfold(1, size, size).unfold(2, size, size)
    return tiles.reshape(-1, size * size)


def _from_blocks(blocks: Tensor, shape: torch.Size) -> Tensor:
    """The inverse of :func:`_to_blocks` for images of ``shape`` (B, 1, N, N)."""
    size = round(blocks.shape[1] ** 0.5)
    per_axis = shape[-1] // size
    tiles = blocks.reshape(shape[0], per_axis, per_axis, size, size)
    return tiles.transpose(2, 3).reshape(shape)
