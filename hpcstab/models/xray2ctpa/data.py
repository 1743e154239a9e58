"""Pairs of xray2ctpa: patches of a CT and the X-ray of the whole. P = patches of a volume, p = edge of a patch."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional

from hpcstab.data.blocks import to_blocks
from hpcstab.data.chest_scans import EDGE_MM as SCAN_EDGE_MM
from hpcstab.data.chest_scans import HIGHEST_HU, LOWEST_HU, chest_scans, smoothed, to_cube
from hpcstab.data.scan_pairs import ScanPair, read_pairs
from hpcstab.data.thorax import AIR_HU, EDGE_MM, thorax
from hpcstab.models.xray2ctpa.config import Data
from hpcstab.models.xray2ctpa.projection import project
from hpcstab.seeds import keyed_seed
from hpcstab.task import DataFinding, Split

Volume = NDArray[np.float32]
_MIDDLE = 0.5  # what a constant patch becomes under `half`


@dataclass(frozen=True)
class Chest:
    """A CT (N, N, N) in HU, cut to -1000..1500, and its X-ray (S, S) in [0, 1]; ``spacing_mm`` between voxels."""

    name: str
    volume: Volume
    xray: Volume
    spacing_mm: float


@dataclass(frozen=True)
class Chests:
    """All chests of a run. ``facts`` say where they are from, ``findings`` what is wrong with some or was left out."""

    splits: Mapping[Split, list[Chest]]
    facts: Mapping[str, int | float | str]
    findings: tuple[DataFinding, ...] = ()


@dataclass(frozen=True)
class Patches:
    """The training items: a patch each, of all volumes.

    An item: ``volume`` (1, p, p, p), in [0, 1] by the volume's own range; ``xray`` (1, S, S); ``places`` (2, 3), its
    first and last corner in the volume, which spans [-1, 1]; ``number`` among the items;
    ``constant``: was it one value, and made 0.5?
    """

    items: list[dict[str, Tensor]]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


@dataclass(frozen=True)
class Volumes:
    """The held-out items: whole volumes, ``volume`` (P, 1, p, p, p), ``places`` (P, 2, 3), ``xray`` (1, S, S).

    ``range_hu`` (2,): what 0 and 1 of the volume are; ``spacing_mm`` (1,).
    """

    items: list[dict[str, Tensor]]
    ids: list[str]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, index: int) -> dict[str, Tensor]:
        return self.items[index]


@dataclass
class Pairs:
    """The chests of a run as items.

    Attributes:
        num_dropped: training patches that were left out as constant.
        num_constant: training patches that are one value, whatever became of them.
    """

    data: Data
    chests: Chests
    num_dropped: int = 0
    num_constant: int = 0
    _ready: dict[Split, Patches | Volumes] = field(default_factory=dict)

    def __getitem__(self, split: Split) -> Patches | Volumes:
        return self.train if split == "train" else self.validation

    @cached_property
    def train(self) -> Patches:
        items: list[dict[str, Tensor]] = []
        ids = []
        for chest in self.chests.splits["train"]:
            patches, places = self._cut(chest)
            xray = torch.from_numpy(chest.xray)[None]
            for index, (patch, at) in enumerate(zip(patches, places, strict=True)):
                low, high = float(patch.min()), float(patch.max())
                if low == high:
                    self.num_constant += 1
                    if self.data.constant == "drop":
                        self.num_dropped += 1
                        continue
                item = {"volume": self._filled(patch), "xray": xray, "places": at}
                is_filled = low == high and self.data.constant == "half"
                items.append({**item, "number": torch.tensor(len(items)), "constant": torch.tensor(is_filled)})
                ids.append(f"{chest.name}_p{index:03d}")
        return Patches(items, ids)

    @cached_property
    def validation(self) -> Volumes:
        items: list[dict[str, Tensor]] = []
        ids = []
        for chest in self.chests.splits["validation"]:
            patches, places = self._cut(chest)
            item = {"volume": patches, "xray": torch.from_numpy(chest.xray)[None], "places": places}
            items.append(
                {**item, "range_hu": torch.tensor(_range_of(chest)), "spacing_mm": torch.tensor([chest.spacing_mm])}
            )
            ids.append(chest.name)
        return Volumes(items, ids)

    def some_training_volumes(self, count: int) -> list[Tensor]:
        """The first ``count`` training volumes, from the first again where there are fewer: (1, P, 1, p, p, p) each."""
        chests = self.chests.splits["train"]
        return [self._cut(chests[index % len(chests)])[0][None] for index in range(count)]

    def named(self, split: Split) -> Iterator[tuple[str, Volume]]:
        """(id, volume (N, N, N) in HU) of a split."""
        return ((chest.name, chest.volume) for chest in self.chests.splits[split])

    def _cut(self, chest: Chest) -> tuple[Tensor, Tensor]:
        """Patches (P, 1, p, p, p), in [0, 1] where the volume is not constant, and their corners (P, 2, 3)."""
        low, high = _range_of(chest)
        scaled = chest.volume if low == high else (chest.volume - low) / (high - low)
        patches = torch.from_numpy(to_blocks(scaled.astype(np.float32), self.data.patch_size))
        edge = 2.0 / self.data.patches_per_axis
        first = torch.arange(self.data.patches_per_axis) * edge - 1.0
        corners = torch.cartesian_prod(first, first, first).reshape(-1, 3)
        return patches, torch.stack([corners, corners + edge], dim=1)

    def _filled(self, patch: Tensor) -> Tensor:
        is_constant = bool(patch.min() == patch.max())
        return torch.full_like(patch, _MIDDLE) if is_constant and self.data.constant == "half" else patch


def make_chest(name: str, volume_hu: Volume, spacing_mm: float, xray_size: int) -> Chest:
    """A chest whose X-ray is its own projection."""
    cut = np.clip(volume_hu, LOWEST_HU, HIGHEST_HU).astype(np.float32)
    film = project(torch.from_numpy(cut)[None, None], torch.tensor([[spacing_mm]]), xray_size)[0, 0].numpy()
    return Chest(name, cut, film, spacing_mm)


def synthetic_chests(data: Data, seed: int) -> Chests:
    """Procedural thoraxes, held out by thorax in a seeded order; the first ``num_constant`` to train on are air."""
    order = np.random.default_rng(keyed_seed(seed, "split")).permutation(data.num_samples)
    num_train = min(data.num_samples - 1, max(1, round(data.train_split * data.num_samples)))
    parts: dict[Split, list[int]] = {"train": sorted(order[:num_train]), "validation": sorted(order[num_train:])}
    spacing_mm = EDGE_MM / data.volume_size

    def chest(number: int, *, is_air: bool) -> Chest:
        shape = (data.volume_size,) * 3
        volume = np.full(shape, AIR_HU, np.float32) if is_air else thorax(data.volume_size, seed, int(number))
        return make_chest(f"t{number:04d}", volume, spacing_mm, data.xray_size)

    splits = {
        split: [chest(n, is_air=split == "train" and i < data.num_constant) for i, n in enumerate(numbers)]
        for split, numbers in parts.items()
    }
    facts: dict[str, int | float | str] = {
        "source": "seeded procedural thoraxes, projected to X-rays",
        "spacing_mm": spacing_mm,
    }
    return Chests(splits, facts)


def real_chests(data: Data, seed: int) -> Chests:
    """Seeded poses of one patient's CT; two others are held out."""
    found = chest_scans(data.volume_size, data.num_samples, seed)
    spacing_mm = SCAN_EDGE_MM / data.volume_size
    parts: dict[Split, list[tuple[str, Volume]]] = {"train": found.train, "validation": found.validation}
    return Chests(
        {
            split: [make_chest(name, volume, spacing_mm, data.xray_size) for name, volume in part]
            for split, part in parts.items()
        },
        found.facts,
    )


def folder_chests(data: Data) -> Chests:
    """The pairs of a user's folder in the order of their names, the last ones held out; cubes as large as each CT."""
    found = read_pairs(Path(data.folder or ""))
    chests = []
    for pair in found.pairs:
        edge_mm = max(n * step for n, step in zip(pair.ct.voxels.shape, pair.ct.spacing_mm, strict=True))
        spacing_mm = edge_mm / data.volume_size
        volume = to_cube(smoothed(pair.ct, spacing_mm), data.volume_size, edge_mm)
        chests.append(Chest(pair.name, volume, _film_on_cube(pair, edge_mm, data.xray_size), spacing_mm))
    num_train = min(len(chests) - 1, max(1, round(data.train_split * len(chests))))
    return Chests({"train": chests[:num_train], "validation": chests[num_train:]}, found.facts, found.findings)


def chests_of(data: Data, seed: int) -> Chests:
    """The chests that ``data.source`` asks for.

    Raises:
        DataError: real data were not fetched, or a folder has no pairs that can be used.
    """
    if data.source == "real":
        return real_chests(data, seed)
    return folder_chests(data) if data.source == "folder" else synthetic_chests(data, seed)


def _film_on_cube(pair: ScanPair, edge_mm: float, size: int) -> Volume:
    """The film (S, S) of the whole cube: black where the cube is larger than the CT."""
    width, _, height = (
        min(size, max(1, round(size * n * step / edge_mm)))
        for n, step in zip(pair.ct.voxels.shape, pair.ct.spacing_mm, strict=True)
    )
    film = torch.from_numpy(pair.film)[None, None]
    resized = functional.interpolate(film, size=(height, width), mode="bilinear", antialias=True)[0, 0].numpy()
    top, left = (size - height) // 2, (size - width) // 2
    return np.pad(resized, ((top, size - height - top), (left, size - width - left)))


def _range_of(chest: Chest) -> tuple[float, float]:
    return float(chest.volume.min()), float(chest.volume.max())
