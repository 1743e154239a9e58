"""Synthetic frontal chest films: lungs, heart, ribs, spine, diaphragm, clavicles, opacities, noise.

They stand in for chest X-rays where no real ones were fetched: one body plan whose position, size, tilt, anatomy and
exposure vary from film to film, so that their mean image is a blurred chest and no good answer. No patient is in them.
N = edge of a film in pixels. NumPy only.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
from numpy.typing import NDArray

from hpcstab.errors import DataError
from hpcstab.seeds import keyed_seed

Field = NDArray[np.floating[Any]]
MIN_SIZE = 16


@dataclass(frozen=True)
class Chest:
    """What differs between films; lengths in half edges of the film, so that x and y run from -1 to 1, y downwards.

    Each field is drawn uniformly from its range in ``_RANGES``. ``exposure`` scales all absorption, ``tilt`` is in
    radians, ``rib_phase`` in turns, ``noise`` in grey values of 0 to 1, densities are absorption in soft tissue of
    the body's thickness.
    """

    shift_x: float
    shift_y: float
    zoom: float
    tilt: float
    body_width: float
    lung_width: float
    lung_height: float
    lung_gap: float
    right_lift: float
    lung_density: float
    heart_size: float
    heart_shift: float
    rib_count: float
    rib_phase: float
    rib_slope: float
    rib_density: float
    spine_density: float
    clavicle_height: float
    opacity_x: float
    opacity_y: float
    opacity_size: float
    opacity_density: float
    exposure: float
    noise: float


_RANGES: dict[str, tuple[float, float]] = {
    "shift_x": (-0.10, 0.10),
    "shift_y": (-0.12, 0.12),
    "zoom": (0.85, 1.15),
    "tilt": (-0.08, 0.08),
    "body_width": (0.85, 1.02),
    "lung_width": (0.26, 0.36),
    "lung_height": (0.50, 0.70),
    "lung_gap": (0.36, 0.46),
    "right_lift": (0.0, 0.12),
    "lung_density": (0.15, 0.40),
    "heart_size": (0.20, 0.36),
    "heart_shift": (0.04, 0.16),
    "rib_count": (6.0, 8.5),
    "rib_phase": (0.0, 1.0),
    "rib_slope": (0.25, 0.60),
    "rib_density": (0.06, 0.20),
    "spine_density": (0.10, 0.30),
    "clavicle_height": (-0.62, -0.48),
    "opacity_x": (-0.6, 0.6),
    "opacity_y": (-0.4, 0.5),
    "opacity_size": (0.06, 0.22),
    "opacity_density": (-0.25, 0.45),  # below 0: no finding on this film
    "exposure": (0.9, 1.7),
    "noise": (0.005, 0.025),
}


def draw_chest(seed: int, sample_id: int) -> Chest:
    """The chest of film ``sample_id``; it depends on (seed, sample_id) alone."""
    generator = np.random.default_rng(keyed_seed(seed, "chest", sample_id))
    return Chest(**{field.name: float(generator.uniform(*_RANGES[field.name])) for field in fields(Chest)})


def chest_film(size: int, seed: int, sample_id: int) -> NDArray[np.uint8]:
    """A film (N, N) of 8 bits, dense tissue bright; the same chest at every ``size``, the noise of that size.

    Raises:
        DataError: a size below 16, in which no chest can be told.
    """
    if size < MIN_SIZE:
        raise DataError(f"a chest film of {size} pixels was asked for: at least {MIN_SIZE}")
    chest = draw_chest(seed, sample_id)
    grey = 1.0 - np.exp(-chest.exposure * _absorption(chest, size))
    generator = np.random.default_rng(keyed_seed(seed, "chest_noise", sample_id, size))
    grey += chest.noise * generator.standard_normal(grey.shape, dtype=np.float32)
    film: NDArray[np.uint8] = np.round(np.clip(grey, 0.0, 1.0) * 255.0).astype(np.uint8)
    return film


def _absorption(chest: Chest, size: int) -> Field:
    """Line integrals of the body (N, N), about 0 in air and 1 in soft tissue."""
    x, y = _coordinates(chest, size)
    distance = np.abs(x)
    torso = _inside((x / chest.body_width) ** 4 + (np.maximum(-y - 0.45, 0.0) / 0.55) ** 2, 0.12)
    neck = _inside((x / 0.22) ** 2 + np.maximum(y, 0.0), 0.3)
    body = np.maximum(torso, neck)
    lungs = _lung(chest, x, y, side=1.0) + _lung(chest, x, y, side=-1.0)
    heart = _heart(chest, x, y)
    air = lungs * (1.0 - 0.85 * heart)

    # ribs and spine cast their shadow on everything; they are seen where the lungs around them are dark
    phase = chest.rib_count * (y - chest.rib_slope * distance**2 + 0.1 * distance) / 1.6 + chest.rib_phase
    ribs = np.exp(6.0 * (np.cos(2.0 * np.pi * phase) - 1.0)) * _inside((distance / 0.78) ** 6, 0.3)
    ribs *= _inside((y / 0.75) ** 6, 0.3)
    vertebrae = 0.8 + 0.2 * np.cos(2.0 * np.pi * 1.7 * chest.rib_count * y / 1.6)
    spine = np.exp(-((x / 0.10) ** 4)) * vertebrae
    clavicles = np.exp(-(((y - chest.clavicle_height + 0.25 * (distance - 0.4)) / 0.045) ** 2))
    clavicles = clavicles * _inside((distance / 0.72) ** 8, 0.2) * (distance > 0.08)
    opacity = max(chest.opacity_density, 0.0) * _blob(
        x - chest.opacity_x, y - chest.opacity_y, chest.opacity_size, 1.3 * chest.opacity_size, sharpness=1.0
    )
    hilum = 0.12 * np.exp(-(((distance - 0.2) / 0.12) ** 2) - ((y + 0.02) / 0.22) ** 2)

    tissue = body * (1.0 - (1.0 - chest.lung_density) * air)
    shadows = chest.rib_density * ribs + chest.spine_density * spine + 0.16 * clavicles
    absorption: Field = tissue + body * (shadows + air * (opacity + hilum)) + 0.35 * heart * body
    return absorption


def _coordinates(chest: Chest, size: int) -> tuple[Field, Field]:
    """(x, y) of every pixel centre in the chest's own frame."""
    axis = (np.arange(size, dtype=np.float32) + 0.5) * (2.0 / size) - 1.0
    x, y = (axis[None, :] - chest.shift_x) / chest.zoom, (axis[:, None] - chest.shift_y) / chest.zoom
    cosine, sine = np.float32(np.cos(chest.tilt)), np.float32(np.sin(chest.tilt))
    return cosine * x + sine * y, cosine * y - sine * x


def _lung(chest: Chest, x: Field, y: Field, side: float) -> Field:
    """One lung: an egg with its tip up, cut off below by its half of the diaphragm, which bends upwards."""
    lift = chest.right_lift if side < 0 else 0.0  # the liver is under the right one, left on the film
    across, up = (side * x - chest.lung_gap) / chest.lung_width, (y + 0.02) / chest.lung_height
    narrowing = 1.0 + 0.35 * np.clip(-up, 0.0, 1.0)  # towards the tip
    egg = _inside((across * narrowing) ** 2 + np.abs(up) ** 2.5, 0.10)
    floor = 0.48 - lift - 0.12 * np.exp(-((across / 0.8) ** 2))
    lung: Field = egg * _step((floor - y) / 0.03)
    return lung


def _heart(chest: Chest, x: Field, y: Field) -> Field:
    """The shadow of the heart, an ellipse that leans to the film's right, and of the great vessels above it."""
    across, down = x - chest.heart_shift, y - 0.24
    muscle = _blob(across - 0.35 * down, 0.35 * across + down, chest.heart_size, 1.15 * chest.heart_size, sharpness=3.0)
    vessels = np.exp(-(((x - 0.02) / 0.17) ** 4)) * _step((0.35 - y) / 0.1) * _step((y + 0.6) / 0.2)
    shadow: Field = np.maximum(muscle, 0.7 * vessels)
    return shadow


def _blob(x: Field, y: Field, width: float, height: float, sharpness: float) -> Field:
    return _step(sharpness * (1.0 - (x / width) ** 2 - (y / height) ** 2))


def _inside(level: Field, softness: float) -> Field:
    """1 where ``level`` is below 1, falling to 0 above it over about ``softness``."""
    return _step((1.0 - level) / softness)


def _step(values: Field) -> Field:
    smooth: Field = 0.5 * (1.0 + np.tanh(np.clip(values, -20.0, 20.0)))
    return smooth
