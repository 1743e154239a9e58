"""Pairs of wavessm: a corrupted image, the clean one, and where they differ."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.photos import photo
from hpcstab.models.wavessm.config import Data
from hpcstab.models.wavessm.corruption import corrupt
from hpcstab.seeds import keyed_seed
from hpcstab.task import Split


@dataclass(frozen=True)
class Pairs:
    """The image pairs of a split, made when they are asked for; each image stands in one split.

    An item: ``corrupted`` and ``clean`` (3, S, S) in [0, 1], ``mask`` (1, S, S), 1 where the image was touched.
    """

    data: Data
    seed: int
    images: tuple[int, ...]

    @property
    def ids(self) -> list[str]:
        return [f"i{image:05d}" for image in self.images]

    def __len__(self) -> int:
        return len(self.images)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clean = self.clean(index)
        generator = np.random.default_rng(keyed_seed(self.seed, "corruption", self.images[index]))
        corrupted, mask = corrupt(clean, self.data.coverage, generator)
        return {
            "corrupted": _as_tensor(corrupted),
            "clean": _as_tensor(clean),
            "mask": torch.from_numpy(mask)[None].float(),
        }

    def clean(self, index: int) -> NDArray[np.uint8]:
        """The image (S, S, 3) before anything was painted over it."""
        generator = np.random.default_rng(keyed_seed(self.seed, "photo", self.images[index]))
        return photo(self.data.image_size, generator)

    def clean_images(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, image (S, S, 3) in [0, 1]) of every image, for the data check."""
        for index, name in enumerate(self.ids):
            yield name, self.clean(index).astype(np.float32) / 255.0


def split_pairs(data: Data, seed: int) -> dict[Split, Pairs]:
    """The images of a run, held out by image in a seeded order."""
    order = np.random.default_rng(keyed_seed(seed, "split")).permutation(data.num_samples)
    num_train = min(data.num_samples - 1, max(1, round(data.train_split * data.num_samples)))
    parts: dict[Split, NDArray[np.int64]] = {"train": order[:num_train], "validation": order[num_train:]}
    return {split: Pairs(data, seed, tuple(sorted(part.tolist()))) for split, part in parts.items()}


def _as_tensor(image: NDArray[np.uint8]) -> Tensor:
    """(S, S, 3) uint8 -> (3, S, S) in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255.0)
