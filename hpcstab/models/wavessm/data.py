"""Pairs of wavessm: a corrupted image, the clean one, and where they differ.

S = edge of an image in pixels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from hpcstab.data.images import Images, Pixels, RealImages, read_folder
from hpcstab.data.photos import photo
from hpcstab.data.real_photos import real_photos
from hpcstab.models.wavessm.config import Data
from hpcstab.models.wavessm.corruption import corrupt
from hpcstab.seeds import keyed_seed
from hpcstab.task import DataFinding, Split


class CleanImages(Protocol):
    """Images (S, S, 3), uint8."""

    def __getitem__(self, index: int, /) -> Pixels: ...


@dataclass(frozen=True)
class DrawnPhotos:
    """Seeded pictures, drawn when they are asked for; ``numbers`` name them among all of a seed."""

    size: int
    seed: int
    numbers: tuple[int, ...]

    def __getitem__(self, index: int, /) -> Pixels:
        return photo(self.size, np.random.default_rng(keyed_seed(self.seed, "photo", self.numbers[index])))


@dataclass(frozen=True)
class Pairs:
    """The image pairs of a split, corrupted when they are asked for: always alike, by seed and id.

    An item: ``corrupted`` and ``clean`` (3, S, S) in [0, 1], ``mask`` (1, S, S), 1 where the image was touched.
    """

    clean: CleanImages
    ids: list[str]
    coverage: tuple[float, float]
    seed: int

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        clean = self.clean[index]
        generator = np.random.default_rng(keyed_seed(self.seed, "corruption", self.ids[index]))
        corrupted, mask = corrupt(clean, self.coverage, generator)
        return {
            "corrupted": _as_tensor(corrupted),
            "clean": _as_tensor(clean),
            "mask": torch.from_numpy(mask)[None].float(),
        }

    def clean_images(self) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, image (S, S, 3) in [0, 1]) of every image, for the data check."""
        for index, name in enumerate(self.ids):
            yield name, self.clean[index].astype(np.float32) / 255.0


@dataclass(frozen=True)
class PairSets:
    """All pairs of a run: no image, and no id, which seeds a corruption, stands in two splits.

    ``facts`` say where the images are from, ``findings`` what was left out and why.
    """

    splits: Mapping[Split, Pairs]
    facts: Mapping[str, int | float | str]
    findings: tuple[DataFinding, ...] = ()


def pairs_of(data: Data, seed: int) -> PairSets:
    """The pairs that ``data.source`` asks for.

    Raises:
        DataError: real photographs were not fetched or have no tile of this size; a folder cannot be used.
    """
    if data.source == "synthetic":
        return _drawn_pairs(data, seed)
    if data.source == "real":
        return _read_pairs(real_photos(data.image_size), data, seed, "data.num_samples, data.train_split")
    assert data.folder is not None, "checked by the config"
    read = read_folder(Path(data.folder).expanduser(), data.image_size, 3, data.train_split)
    return _read_pairs(read, data, seed, "data.num_samples")


def _drawn_pairs(data: Data, seed: int) -> PairSets:
    """Held out by image in a seeded order."""
    order = np.random.default_rng(keyed_seed(seed, "split")).permutation(data.num_samples)
    num_train = min(data.num_samples - 1, max(1, round(data.train_split * data.num_samples)))
    numbers: dict[Split, tuple[int, ...]] = {
        "train": tuple(sorted(order[:num_train].tolist())),
        "validation": tuple(sorted(order[num_train:].tolist())),
    }
    splits = {
        split: Pairs(
            DrawnPhotos(data.image_size, seed, part), [f"i{number:05d}" for number in part], data.coverage, seed
        )
        for split, part in numbers.items()
    }
    return PairSets(splits, {"source": "seeded synthetic pictures"})


def _read_pairs(read: RealImages, data: Data, seed: int, unused: str) -> PairSets:
    """All images, held out as they came, in one shuffled order for all seeds; ``unused``: keys without a meaning here.

    An evaluation may look at the first images alone, and neighbours are of one photograph.
    """
    held_out = read.splits["validation"]
    order = np.random.default_rng(keyed_seed(0, "held_out_order")).permutation(len(held_out)).tolist()
    images: dict[Split, Images] = {
        "train": read.splits["train"],
        "validation": Images(held_out.pixels[order], [held_out.ids[index] for index in order]),
    }
    splits = {split: Pairs(part.pixels, part.ids, data.coverage, seed) for split, part in images.items()}
    return PairSets(splits, {**read.facts, "unused_keys": unused}, read.findings)


def _as_tensor(image: Pixels) -> Tensor:
    """(S, S, 3) uint8 -> (3, S, S) in [0, 1]."""
    return torch.from_numpy(image.transpose(2, 0, 1).astype(np.float32) / 255.0)
