"""Synthetic labelled brains: nested and paired ellipsoids with the intensities of a T1-weighted scan in scanner units.

They stand in for MR scans where none was fetched. A brain is a function of place, so that a warped one is exact:
labels and intensities are looked up where each voxel comes from, nothing is interpolated. Coordinates are voxels from
the middle of a volume; lengths of anatomy are parts of half its edge. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.diffeomorphisms import Points

LABELS = (
    "cerebrospinal fluid",
    "cortex",
    "white matter left",
    "white matter right",
    "ventricle left",
    "ventricle right",
    "thalamus left",
    "thalamus right",
    "brain stem",
)
"""Label i + 1 of each; 0 is background."""

_CSF, _CORTEX, _WHITE, _DEEP = 800.0, 1200.0, 1500.0, 1350.0
_BACKGROUND = 600.0  # flat, as skull stripping leaves it, and not 0, as where scanners store with an offset
_EDGE_SOFTNESS = 0.6  # voxels
_ELLIPSOIDS: tuple[tuple[int, float, tuple[float, float, float], tuple[float, float, float]], ...] = (
    # label, intensity, centre and radii along (left to right, back to front, foot to head)
    (1, _CSF, (0.0, 0.0, 0.05), (0.70, 0.84, 0.74)),
    (2, _CORTEX, (0.0, 0.0, 0.05), (0.62, 0.76, 0.66)),
    (3, _WHITE, (-0.26, 0.0, 0.10), (0.25, 0.58, 0.42)),
    (4, _WHITE, (0.26, 0.0, 0.10), (0.25, 0.58, 0.42)),
    (5, _CSF, (-0.15, 0.06, 0.20), (0.10, 0.36, 0.14)),
    (6, _CSF, (0.15, 0.06, 0.20), (0.10, 0.36, 0.14)),
    (7, _DEEP, (-0.15, -0.06, -0.06), (0.12, 0.20, 0.13)),
    (8, _DEEP, (0.15, -0.06, -0.06), (0.12, 0.20, 0.13)),
    (9, _WHITE, (0.0, -0.14, -0.48), (0.17, 0.18, 0.30)),
)
_VARIATION = 0.06  # of each radius, and as much of half an edge of each centre: how subjects differ


@dataclass(frozen=True)
class Brain:
    """One subject in a volume of ``edge`` voxels: ``centres`` and ``radii`` (9, 3) of its structures, in voxels."""

    edge: int
    centres: Points
    radii: Points

    def look_up(self, points: Points) -> tuple[NDArray[np.float32], NDArray[np.uint8]]:
        """(intensities, labels) at points (N, 3); edges of intensity are as soft as a voxel is wide."""
        intensities, labels = np.full(len(points), _BACKGROUND), np.zeros(len(points), np.uint8)
        for (label, intensity, _, _), centre, radii in zip(_ELLIPSOIDS, self.centres, self.radii, strict=True):
            outside = (np.linalg.norm((points - centre) / radii, axis=1) - 1.0) * radii.min()  # voxels, nearly
            part = 1.0 / (1.0 + np.exp(np.clip(outside / _EDGE_SOFTNESS, -50.0, 50.0)))
            intensities += part * (intensity - intensities)
            labels[outside < 0.0] = label
        return intensities.astype(np.float32), labels


def random_brain(edge: int, generator: np.random.Generator, variation: float = _VARIATION) -> Brain:
    """A subject that differs from others in size and place of every structure."""
    half = edge / 2.0
    centres = np.array([centre for _, _, centre, _ in _ELLIPSOIDS])
    radii = np.array([radii for _, _, _, radii in _ELLIPSOIDS])
    return Brain(
        edge,
        (centres + generator.uniform(-variation, variation, centres.shape) * 0.5) * half,
        radii * (1.0 + generator.uniform(-variation, variation, radii.shape)) * half,
    )
