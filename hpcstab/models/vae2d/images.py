"""The images of a run and their split: seeded chest films, fetched slices of a head, or a folder of the user's own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterator, Mapping
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from hpcstab.data.checks import check_arrays, num_distinct
from hpcstab.data.head_slices import head_slices
from hpcstab.data.images import RealImages, read_folder
from hpcstab.data.lungs import chest_film
from hpcstab.models.vae2d.config import Data
from hpcstab.models.vae2d.data import ImageItems
from hpcstab.seeds import keyed_seed
from hpcstab.task import DataFinding, Split

SPLITS: tuple[Split, ...] = ("train", "validation")


class Images(ABC):
    """All images of a run."""

    def __init__(self, data: Data, seed: int) -> None:
        self._data = data
        self._seed = seed

    @cached_property
    @abstractmethod
    def items(self) -> Mapping[Split, ImageItems]:
        """The images of each split."""

    @abstractmethod
    def provenance(self) -> Mapping[str, int | float | str]:
        """Where they come from, and what was left out."""

    def facts(self) -> Mapping[str, int | float | str]:
        return {
            **self.provenance(),
            "num_train_items": len(self.items["train"]),
            "num_distinct_train_items": num_distinct(self._named("train")),
            "num_validation_items": len(self.items["validation"]),
            "image_size": self._data.image_size,
        }

    def check(self) -> list[DataFinding]:
        """What is wrong with the images that are used."""
        shape = (self._data.image_size,) * 2
        return check_arrays({split: self._named(split) for split in SPLITS}, shape, (0.0, 1.0))

    def _named(self, split: Split) -> Iterator[tuple[str, NDArray[np.float32]]]:
        """(id, image (N, N) in [0, 1]) of a split."""
        items = self.items[split]
        for index, name in enumerate(items.ids):
            yield name, items[index][0].numpy()


class ChestFilms(Images):
    """Seeded films, split at random by film: each is a chest of its own."""

    @cached_property
    def items(self) -> Mapping[Split, ImageItems]:
        num = self._data.num_samples
        order = np.random.default_rng(keyed_seed(self._seed, "split")).permutation(num).tolist()
        num_train = min(num - 1, max(1, round(self._data.train_split * num)))
        return {"train": self._films(sorted(order[:num_train])), "validation": self._films(sorted(order[num_train:]))}

    def provenance(self) -> Mapping[str, int | float | str]:
        return {"source": f"seeded synthetic chest films ({self._data.source})"}

    def _films(self, numbers: list[int]) -> ImageItems:
        films = [chest_film(self._data.image_size, self._seed, number) for number in numbers]
        return ImageItems(torch.from_numpy(np.stack(films)), [f"film_{number:05d}" for number in numbers])


class ReadImages(Images):
    """Images that were not drawn by us, with the split that they came with.

    Held-out ones are put in a seeded order: variances between images are taken within an evaluation batch and pictures
    show the first images, but neighbours of a series are near-copies.
    """

    @cached_property
    def _read(self) -> RealImages:
        data = self._data
        if data.folder is None:
            return head_slices(data.image_size, data.train_split)
        return read_folder(Path(data.folder), data.image_size, 1, data.train_split)

    @cached_property
    def items(self) -> Mapping[Split, ImageItems]:
        train, held_out = self._read.splits["train"], self._read.splits["validation"]
        order = np.random.default_rng(keyed_seed(self._seed, "held_out_order")).permutation(len(held_out)).tolist()
        return {
            "train": ImageItems(torch.from_numpy(train.pixels), train.ids),
            "validation": ImageItems(
                torch.from_numpy(held_out.pixels[order]), [held_out.ids[index] for index in order]
            ),
        }

    def provenance(self) -> Mapping[str, int | float | str]:
        return self._read.facts

    def check(self) -> list[DataFinding]:
        return [*self._read.findings, *super().check()]


def images_of(data: Data, seed: int) -> Images:
    """The images that ``data.source`` asks for."""
    return ChestFilms(data, seed) if data.source == "synthetic" else ReadImages(data, seed)
