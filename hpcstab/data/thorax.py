"""Procedural chest CT: body, lungs, heart, spine, ribs, contrast-filled vessels, noise; in Hounsfield units.

They stand in for real scans where none were fetched: one body plan whose sizes and places vary, so that the mean volume
is a blurred thorax and no good answer. No patient is in them. N = edge of the cube in voxels; axes as in
:class:`hpcstab.data.scans.Scan`: x to the right, y to the front, z to the head. NumPy only.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError
from hpcstab.seeds import keyed_seed

Volume = NDArray[np.float32]
EDGE_MM = 320.0
"""Edge of the cube, so that N voxels are 320 / N mm apart."""
AIR_HU, TISSUE_HU, LUNG_HU, BONE_HU, CONTRAST_HU = -1000.0, 40.0, -850.0, 500.0, 300.0
_FAT_HU = -90.0
_NOISE_HU = 12.0
MIN_SIZE = 8
_NUM_BRANCHES = 7  # of the vessels in each lung


def thorax(size: int, seed: int, sample_id: int) -> Volume:
    """The CT (N, N, N) of thorax ``sample_id``; the same anatomy at every ``size``, the noise of that size.

    Raises:
        DataError: a size below 8, in which no thorax can be told.
    """
    if size < MIN_SIZE:
        raise DataError(f"a thorax of {size} voxels an edge was asked for: at least {MIN_SIZE}")
    draw = np.random.default_rng(keyed_seed(seed, "thorax", sample_id))
    volume = _anatomy(size, draw)
    noise = np.random.default_rng(keyed_seed(seed, "thorax_noise", sample_id, size))
    volume += _NOISE_HU * noise.standard_normal(volume.shape, dtype=np.float32)
    clipped: Volume = np.clip(volume, -1024.0, 3071.0)
    return clipped


def _anatomy(size: int, draw: np.random.Generator) -> Volume:
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    shift = draw.uniform(-0.06, 0.06, 3)
    x, y, z = (axis[:, None, None] - shift[0], axis[None, :, None] - shift[1], axis[None, None, :] - shift[2])
    soft = 3.0 / size  # borders are about a voxel wide
    wide, deep = draw.uniform(0.78, 0.92), draw.uniform(0.52, 0.66)
    body = _inside((x / wide) ** 2 + (y / deep) ** 2, soft)
    muscle = _inside((x / (wide - 0.06)) ** 2 + (y / (deep - 0.06)) ** 2, soft)
    volume = AIR_HU + body * (_FAT_HU - AIR_HU) + muscle * (TISSUE_HU - _FAT_HU) + 0.0 * z

    lung = np.zeros_like(volume)
    for side in (-1.0, 1.0):
        gap, width, height = draw.uniform(0.36, 0.42), draw.uniform(0.24, 0.31), draw.uniform(0.62, 0.80)
        lift = draw.uniform(-0.05, 0.12) if side > 0 else 0.0  # the liver is under the right one
        floor = _step((z + 0.55 - lift - 0.25 * (x - side * gap) ** 2) / soft)
        outline = ((x - side * gap) / width) ** 2 + (y / (0.72 * deep)) ** 2 + (np.maximum(z, 0.0) / height) ** 2
        lung = np.maximum(lung, _inside(outline, soft) * floor)
    heart_x, heart_size = draw.uniform(-0.16, -0.06), draw.uniform(0.24, 0.32)
    heart = _inside(
        ((x - heart_x) / heart_size) ** 2 + ((y - 0.1) / 0.26) ** 2 + ((z + 0.28) / (1.1 * heart_size)) ** 2, soft
    )
    lung = lung * (1.0 - heart)
    volume += lung * (LUNG_HU - volume)
    volume += heart * (0.6 * CONTRAST_HU - volume)
    seen = np.maximum(lung, _inside((x / 0.3) ** 2 + (y / 0.4) ** 2, soft))  # vessels run in lungs and mediastinum
    for start, end, radius in _vessels(draw):
        _draw_tube(volume, seen, (x, y, z), start, end, max(radius, 0.7 / size))

    turns, phase = draw.uniform(6.0, 8.0), draw.uniform(0.0, 1.0)
    ring = np.sqrt((x / (wide - 0.09)) ** 2 + (y / (deep - 0.09)) ** 2)
    ribs = np.exp(-(((ring - 1.0) / 0.06) ** 2)) * _step(
        (np.cos(2 * np.pi * (turns * (z + 0.3 * y) / 2 + phase)) - 0.3) / 0.3
    )
    spine = _inside((x / 0.11) ** 2 + ((y + deep - 0.22) / 0.11) ** 2, soft)
    spine = spine * (0.75 + 0.25 * np.cos(2 * np.pi * 1.6 * turns * z / 2))
    volume += np.clip(ribs * body, 0.0, 1.0) * (BONE_HU - volume)
    volume += np.clip(spine, 0.0, 1.0) * (BONE_HU - volume)
    anatomy: Volume = volume.astype(np.float32)
    return anatomy


def _vessels(draw: np.random.Generator) -> list[tuple[NDArray[np.float64], NDArray[np.float64], float]]:
    """(start, end, radius) of tubes: the aorta, the pulmonary trunk and branches into both lungs."""
    root = np.array([-0.04, 0.05, 0.08])
    tubes = [
        (np.array([0.05, -0.2, -1.0]), np.array([0.05, -0.15, 0.35]), 0.075),
        (root + np.array([0.0, 0.1, -0.25]), root, 0.08),
    ]
    for side in (-1.0, 1.0):
        hilum = np.array([side * 0.22, 0.0, draw.uniform(0.0, 0.1)])
        tubes.append((root, hilum, 0.06))
        for _ in range(_NUM_BRANCHES):
            end = np.array([side * draw.uniform(0.4, 0.6), draw.uniform(-0.35, 0.35), draw.uniform(-0.5, 0.6)])
            tubes.append((hilum, end, float(draw.uniform(0.015, 0.035))))
    return tubes


def _draw_tube(
    volume: Volume,
    seen: Volume,
    axes: tuple[Volume, Volume, Volume],
    start: NDArray[np.float64],
    end: NDArray[np.float64],
    radius: float,
) -> None:
    """Fill what lies within ``radius`` of the line from ``start`` to ``end``, as far as it is ``seen``; in place."""
    margin = radius + 4.0 / volume.shape[0]
    box, near = [], []
    for number, (axis, one, other) in enumerate(zip(axes, start, end, strict=True)):
        inside = np.flatnonzero((axis.ravel() > min(one, other) - margin) & (axis.ravel() < max(one, other) + margin))
        if not len(inside):
            return
        box.append(slice(inside[0], inside[-1] + 1))
        near.append(np.take(axis, np.arange(inside[0], inside[-1] + 1), axis=number) - np.float32(one))
    along = (end - start).astype(np.float32)
    at = np.clip(sum(a * d for a, d in zip(near, along, strict=True)) / float(along @ along), 0.0, 1.0)
    distance = np.sqrt(sum((a - at * d) ** 2 for a, d in zip(near, along, strict=True)))
    part = tuple(box)
    filled = _step((radius - distance) * volume.shape[0]) * seen[part]
    volume[part] += filled * (CONTRAST_HU - volume[part])


def _inside(level: NDArray[Any], soft: float) -> Volume:
    """1 where ``level`` is below 1, falling to 0 above it over about ``soft``."""
    return _step((1.0 - level) / soft)


def _step(values: NDArray[Any]) -> Volume:
    smooth: Volume = (0.5 * (1.0 + np.tanh(np.clip(values, -10.0, 10.0)))).astype(np.float32)
    return smooth
