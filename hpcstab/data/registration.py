"""Pairs of volumes to be registered, with the answer where it is known.

A pair: ``fixed(x) = moving(x + displacement(x))``; so the displacement that brings moving onto fixed is known exactly.
(D, H, W) = voxels.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.brains import Brain
from hpcstab.data.diffeomorphisms import Flow, centred_grid

Normalization = Literal["none", "zscore", "minmax"]


@dataclass(frozen=True)
class Volume:
    """``intensities`` (D, H, W) and ``labels`` (D, H, W), 0 is background."""

    intensities: NDArray[np.float32]
    labels: NDArray[np.uint8]

    @property
    def shape(self) -> tuple[int, int, int]:
        depth, height, width = self.intensities.shape
        return depth, height, width


@dataclass(frozen=True)
class Pair:
    """``displacement`` (3, D, H, W) in voxels, None where nobody knows it: two different anatomies."""

    fixed: Volume
    moving: Volume
    displacement: NDArray[np.float32] | None


def synthetic_pair(brain: Brain, flow: Flow) -> Pair:
    """A synthetic brain and itself, warped: both looked up, neither interpolated."""
    shape = (brain.edge,) * 3
    points = centred_grid(shape)
    displacement = flow.displacement(points)
    fixed, moving = (_looked_up(brain, place) for place in (points + displacement, points))
    return Pair(fixed, moving, displacement.T.reshape(3, *shape).astype(np.float32))


def normalized(intensities: NDArray[np.float32], how: Normalization) -> NDArray[np.float32]:
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


def _looked_up(brain: Brain, points: NDArray[np.float64]) -> Volume:
    intensities, labels = brain.look_up(points)
    shape = (brain.edge,) * 3
    return Volume(intensities.reshape(shape), labels.reshape(shape))
