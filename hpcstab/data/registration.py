"""Pairs of volumes to be registered, with the answer where it is known.

A pair with a known answer is a subject and itself, warped: ``fixed(x) = moving(x + displacement(x))``, both looked up
in the subject, neither interpolated from the other. (D, H, W) = voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Protocol

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.diffeomorphisms import Flow, Points, centred_grid

Normalization = Literal["none", "zscore", "minmax"]
Intensities = NDArray[np.float32]
Labels = NDArray[np.uint8]


class Subject(Protocol):
    """An anatomy that can be asked at any place; places are (N, 3) in voxels of the pair, from its middle."""

    def look_up(self, points: Points) -> tuple[Intensities, Labels]:
        """Intensities (N,) and labels (N,), 0 is background."""
        ...


@dataclass(frozen=True)
class Volume:
    """``intensities`` (D, H, W) and ``labels`` (D, H, W), 0 is background."""

    intensities: Intensities
    labels: Labels


@dataclass(frozen=True)
class Pair:
    """``displacement`` (3, D, H, W) in voxels, None where nobody knows it: two different anatomies."""

    fixed: Volume
    moving: Volume
    displacement: NDArray[np.float32] | None


def known_pair(subject: Subject, flow: Flow, edge: int) -> Pair:
    """A cube of ``edge`` voxels of the subject as ``moving``, and where ``flow`` takes it as ``fixed``."""
    points = centred_grid((edge,) * 3)
    displacement = flow.displacement(points)
    fixed, moving = (_seen_at(subject, places, edge) for places in (points + displacement, points))
    return Pair(fixed, moving, displacement.T.reshape(3, edge, edge, edge).astype(np.float32))


def anatomies(fixed: Subject, moving: Subject, edge: int) -> Pair:
    """Two subjects in one space."""
    points = centred_grid((edge,) * 3)
    return Pair(_seen_at(fixed, points, edge), _seen_at(moving, points, edge), None)


def normalized(intensities: Intensities, how: Normalization) -> Intensities:
    """``none`` leaves scanner units; ``zscore`` is mean 0 and spread 1 of the volume; ``minmax`` is 0 to 1.

    A constant volume becomes 0, and is found by the data check.
    """
    if how == "none":
        return intensities
    if how == "zscore":
        offset, unit = float(intensities.mean()), float(intensities.std())
    else:
        offset, unit = float(intensities.min()), float(intensities.max() - intensities.min())
    return ((intensities - offset) / (unit or 1.0)).astype(np.float32)


def _seen_at(subject: Subject, points: Points, edge: int) -> Volume:
    intensities, labels = subject.look_up(points)
    return Volume(intensities.reshape(edge, edge, edge), labels.reshape(edge, edge, edge))
