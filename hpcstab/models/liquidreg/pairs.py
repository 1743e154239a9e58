"""Where the pairs of a run come from: drawn, made of real brains, or of the subjects of a folder."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path

import numpy as np

from hpcstab.data.brains import LABELS, random_brain
from hpcstab.data.diffeomorphisms import Flow, random_flow
from hpcstab.data.registration import Pair, anatomies, known_pair
from hpcstab.data.registration_folder import ScannedSubject, Subjects, read_subjects
from hpcstab.data.scanned_brains import BRAIN_PACKAGES, TISSUES, BrainName, ScannedBrain, scanned_brain
from hpcstab.data.sources import SOURCES, provenance
from hpcstab.models.liquidreg.config import Data
from hpcstab.seeds import keyed_seed
from hpcstab.task import DataFinding, Split

_MAX_LABELS_SHOWN = 40  # OASIS has 35
_ANATOMIES = "colin27_to_mni152"
_BOTH: tuple[BrainName, BrainName] = ("mni152", "colin27")


class PairSource(ABC):
    """The pairs of a run by split.

    ``num_labels``: the largest label. ``label_names``: of those that are looked at one by one; empty where they are
    not the same in all pairs, or too many.
    """

    num_labels: int
    answers_known: bool
    value_range: tuple[float, float]
    beside: Sequence[str] = ()
    findings: Sequence[DataFinding] = ()

    def __init__(self, data: Data, seed: int) -> None:
        self._data = data
        self._seed = seed

    @property
    @abstractmethod
    def label_names(self) -> Mapping[int, str]: ...

    @abstractmethod
    def names(self, split: Split) -> list[str]:
        """Ids of the pairs of a split."""

    @abstractmethod
    def pair(self, split: Split, index: int) -> Pair:
        """The pair in its own units; the same one whenever it is asked for."""

    @abstractmethod
    def facts(self) -> Mapping[str, int | float | str]:
        """Where the pairs come from, in words."""


class KnownPairs(PairSource):
    """Subjects and themselves, warped by seeded flows: the answer is known."""

    answers_known = True

    @cached_property
    def _numbers(self) -> Mapping[Split, list[int]]:
        """Numbers of the pairs, held out in a seeded order."""
        num = self._data.num_samples
        order = np.random.default_rng(keyed_seed(self._seed, "split")).permutation(num).tolist()
        num_train = min(num - 1, max(1, round(self._data.train_split * num)))
        return {"train": sorted(order[:num_train]), "validation": sorted(order[num_train:])}

    def names(self, split: Split) -> list[str]:
        return [f"p{number:05d}" for number in self._numbers[split]]

    def _flow(self, generator: np.random.Generator) -> Flow:
        largest = self._data.largest_velocity * generator.uniform(0.5, 1.0)
        return random_flow((self._data.edge,) * 3, largest, generator)

    def _generator(self, split: Split, index: int) -> np.random.Generator:
        return np.random.default_rng(keyed_seed(self._seed, "pair", self._numbers[split][index]))


class SyntheticPairs(KnownPairs):
    """A drawn brain for each pair."""

    num_labels = len(LABELS)
    value_range = (0.0, 4095.0)

    @property
    def label_names(self) -> Mapping[int, str]:
        return dict(enumerate(LABELS, start=1))

    def pair(self, split: Split, index: int) -> Pair:
        generator = self._generator(split, index)
        brain = random_brain(self._data.edge, generator)
        return known_pair(brain, self._flow(generator), self._data.edge)

    def facts(self) -> Mapping[str, int | float | str]:
        return {"source": "seeded synthetic brains, each with itself, warped by a seeded flow"}


class RealPairs(KnownPairs):
    """Fetched brains in turn, held out by warp; with both of them, their own pair stands beside in validation."""

    value_range = (0.0, 255.0)

    def __init__(self, data: Data, seed: int) -> None:
        super().__init__(data, seed)
        self.beside = (_ANATOMIES,) if len(set(data.brains)) > 1 else ()

    @cached_property
    def _brains(self) -> list[ScannedBrain]:
        return [scanned_brain(name, self._data.edge) for name in self._data.brains]

    @cached_property
    def _anatomies(self) -> Pair:
        fixed, moving = (scanned_brain(name, self._data.edge, tissue=True) for name in _BOTH)
        return anatomies(fixed, moving, self._data.edge)

    @cached_property
    def num_labels(self) -> int:  # type: ignore[override]
        return max(int(brain.labels.voxels.max()) for brain in self._brains)

    @property
    def label_names(self) -> Mapping[int, str]:
        """Those of MNI152; Colin27 has 116 regions, and label 1 of the one is not that of the other."""
        return TISSUES if set(self._data.brains) == {"mni152"} else {}

    def names(self, split: Split) -> list[str]:
        """The pair beside comes first, so that evaluations that are cut short look at it, too."""
        return [*(self.beside if split == "validation" else ()), *super().names(split)]

    def pair(self, split: Split, index: int) -> Pair:
        if split == "validation":
            if index < len(self.beside):
                return self._anatomies
            index -= len(self.beside)
        brain = self._brains[self._numbers[split][index] % len(self._brains)]
        return known_pair(brain, self._flow(self._generator(split, index)), self._data.edge)

    def facts(self) -> Mapping[str, int | float | str]:
        sources = [SOURCES[BRAIN_PACKAGES[name]] for name in self._data.brains]
        return {
            "source": f"{' and '.join(self._data.brains)} of {', '.join(source.release for source in sources)},"
            " each with itself, warped by a seeded flow" + ("; beside them Colin27 to MNI152" if self.beside else ""),
            **provenance(sources),
            "scans": "; ".join(
                _described(brain, name) for brain, name in zip(self._brains, self._data.brains, strict=True)
            ),
            "spacing_mm": self._brains[0].spacing_mm,
            "num_subjects": len(self._brains),
            "held_out_by": "warp: training and held-out pairs show the same brains",
        }


class FolderPairs(PairSource):
    """Each subject of a folder with the next one of its split, held out by subject; nobody knows the answers."""

    answers_known = False
    value_range = (-np.inf, np.inf)

    @cached_property
    def _read(self) -> Subjects:
        return read_subjects(Path(str(self._data.folder)), self._data.edge)

    @cached_property
    def _subjects(self) -> Mapping[Split, list[ScannedSubject]]:
        subjects = self._read.subjects
        order = np.random.default_rng(keyed_seed(self._seed, "split")).permutation(len(subjects)).tolist()
        num_train = min(len(subjects) - 2, max(2, round(self._data.train_split * len(subjects))))
        return {
            "train": [subjects[number] for number in order[:num_train]],
            "validation": [subjects[number] for number in order[num_train:]],
        }

    @property
    def findings(self) -> Sequence[DataFinding]:  # type: ignore[override]
        return self._read.findings

    @cached_property
    def num_labels(self) -> int:  # type: ignore[override]
        return max(int(subject.labels.voxels.max()) for subject in self._read.subjects)

    @property
    def label_names(self) -> Mapping[int, str]:
        """By number: a folder has no names."""
        found = sorted({int(n) for subject in self._read.subjects for n in np.unique(subject.labels.voxels)} - {0})
        return {number: f"label {number}" for number in found} if len(found) <= _MAX_LABELS_SHOWN else {}

    def names(self, split: Split) -> list[str]:
        subjects = self._subjects[split]
        return [f"{moving.name}_to_{fixed.name}" for fixed, moving in _in_a_ring(subjects)]

    def pair(self, split: Split, index: int) -> Pair:
        fixed, moving = _in_a_ring(self._subjects[split])[index]
        return anatomies(fixed, moving, self._data.edge)

    def facts(self) -> Mapping[str, int | float | str]:
        return {
            "source": f"subjects of {self._data.folder}, each onto the one before it",
            "num_train_subjects": len(self._subjects["train"]),
            "num_validation_subjects": len(self._subjects["validation"]),
            "num_left_out": sum(finding.count for finding in self.findings),
        }


def pairs_of(data: Data, seed: int) -> PairSource:
    """The pairs that ``data.source`` asks for."""
    kinds: dict[str, Callable[[Data, int], PairSource]] = {
        "synthetic": SyntheticPairs,
        "real": RealPairs,
        "folder": FolderPairs,
    }
    return kinds[data.source](data, seed)


def _described(brain: ScannedBrain, name: str) -> str:
    """Orientation and spacing of a scan as it was read, its range after the blur."""
    voxels, steps = brain.image.voxels, brain.image.spacing_mm
    size, spacing = (" x ".join(f"{value:g}" for value in values) for values in (voxels.shape, steps))
    return f"{name}: axes right, front, head; {size} voxels of {spacing} mm; {voxels.min():.4g} to {voxels.max():.4g}"


def _in_a_ring(subjects: list[ScannedSubject]) -> list[tuple[ScannedSubject, ScannedSubject]]:
    return list(zip(subjects, [*subjects[1:], subjects[0]], strict=True))
