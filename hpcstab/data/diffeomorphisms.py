"""Seeded smooth diffeomorphisms whose displacement is known at every point: flows of a few plane waves.

Coordinates are voxels, measured from the middle of a volume. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
_NUM_STEPS = 4  # of Runge-Kutta: a test says how far that is from the limit
_TRIAL_POINTS = 8  # along each axis, where the largest velocity is looked for


@dataclass(frozen=True)
class Flow:
    """Follows v(x) = sum over waves of cosine cos(wave . x) + sine sin(wave . x) for one unit of time.

    The flow of a smooth field is one to one whatever its size, and its inverse is that of -v. ``waves`` (M, 3) in
    radians a voxel; ``cosines`` and ``sines`` (M, 3): the velocity of each wave along each axis, in voxels.
    """

    waves: Points
    cosines: Points
    sines: Points

    def velocity(self, points: Points) -> Points:
        """(N, 3) voxels -> (N, 3) voxels."""
        angles = points @ self.waves.T
        return np.asarray(np.cos(angles) @ self.cosines + np.sin(angles) @ self.sines)

    def displacement(self, points: Points, num_steps: int = _NUM_STEPS) -> Points:
        """Where each point (N, 3) ends, less where it began."""
        here, dt = points, 1.0 / num_steps
        for _ in range(num_steps):
            first = self.velocity(here)
            second = self.velocity(here + 0.5 * dt * first)
            third = self.velocity(here + 0.5 * dt * second)
            fourth = self.velocity(here + dt * third)
            here = here + dt / 6.0 * (first + 2.0 * second + 2.0 * third + fourth)
        return here - points

    def scaled(self, factor: float) -> Flow:
        """The same shape, so many times as fast; -1 is the inverse."""
        return Flow(self.waves, self.cosines * factor, self.sines * factor)


def random_flow(shape: tuple[int, int, int], largest: float, generator: np.random.Generator) -> Flow:
    """A flow whose largest velocity in a volume of ``shape`` is ``largest`` voxels along some axis.

    Three waves, half a period along one axis each: shifts, stretches and bends of the whole volume.
    """
    flow = Flow(np.diag(np.pi / np.array(shape)), generator.normal(size=(3, 3)), generator.normal(size=(3, 3)))
    trial = centred_grid((_TRIAL_POINTS,) * 3) * (np.array(shape) / _TRIAL_POINTS)
    return flow.scaled(largest / float(np.abs(flow.velocity(trial)).max()))


def centred_grid(shape: tuple[int, int, int]) -> Points:
    """(D H W, 3): every voxel's place, from the middle of the volume."""
    axes: list[NDArray[Any]] = [np.arange(size) - (size - 1) / 2.0 for size in shape]
    return np.stack(np.meshgrid(*axes, indexing="ij"), axis=-1).reshape(-1, 3)
