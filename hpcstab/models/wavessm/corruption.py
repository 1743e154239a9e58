"""What spoils the images of WaveSSM-X: strokes, patches and shapes with smudged borders and a content of their own.

S = edge in pixels. NumPy only; a corruption depends on its generator, S and the bounds of its coverage.
"""

from __future__ import annotations

from collections.abc import Callable
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from hpcstab.data.photos import Field, coordinates, smooth_noise, to_bytes

_SMALLEST_OPACITY = 0.05  # below it a pixel stays untouched: the tails of a smudge are no damage
_MAX_SHAPES = 40


class Corrupted(NamedTuple):
    """``image`` (S, S, 3), uint8, and ``mask`` (S, S), True where it was touched."""

    image: NDArray[np.uint8]
    mask: NDArray[np.bool_]


def corrupt(clean: NDArray[np.uint8], coverage: tuple[float, float], generator: np.random.Generator) -> Corrupted:
    """A picture (S, S, 3) with something painted over it.

    Args:
        coverage: shapes are added until a part of the image drawn from these bounds is covered.
    """
    size = clean.shape[0]
    opacity = _smudged(_cover(size, generator.uniform(*coverage), generator), generator.uniform(0.5, 1.5) * size / 64)
    opacity[opacity < _SMALLEST_OPACITY] = 0.0
    painted = clean / 255.0
    painted = painted + opacity[..., None] * (_content(size, generator) - painted)
    return Corrupted(to_bytes(painted), opacity > 0.0)


def _cover(size: int, wanted: float, generator: np.random.Generator) -> Field:
    """Shapes (S, S) of one family, or of all mixed, until the part `wanted` is covered."""
    chosen = generator.integers(len(_FAMILIES) + 1)
    cover = np.zeros((size, size))
    for _ in range(_MAX_SHAPES):
        family = chosen if chosen < len(_FAMILIES) else generator.integers(len(_FAMILIES))
        cover = np.maximum(cover, _FAMILIES[family](size, generator))
        if cover.mean() >= wanted:
            break
    return cover


def _thin_line(size: int, generator: np.random.Generator) -> Field:
    """A straight scratch."""
    ends = generator.uniform(-1.2, 1.2, (2, 2))
    return _stroke(size, ends, generator.uniform(0.02, 0.05))


def _thick_stroke(size: int, generator: np.random.Generator) -> Field:
    """A bent brush stroke: a quadratic Bezier curve of eight pieces."""
    start, bend, end = generator.uniform(-1.0, 1.0, (3, 2))
    at = np.linspace(0.0, 1.0, 9)[:, None]
    curve = (1 - at) ** 2 * start + 2 * at * (1 - at) * bend + at**2 * end
    return _stroke(size, curve, generator.uniform(0.08, 0.18))


def _irregular_patch(size: int, generator: np.random.Generator) -> Field:
    """An island where smooth noise rises above a level."""
    noise = smooth_noise(size, 2.5, generator)
    level = np.quantile(noise, generator.uniform(0.88, 0.96))
    return np.asarray(noise > level, dtype=np.float64)


def _weird_shape(size: int, generator: np.random.Generator) -> Field:
    """A blob whose radius wobbles with the angle."""
    x, y = coordinates(size)
    centre_x, centre_y = generator.uniform(-0.8, 0.8, 2)
    angle, radius = np.arctan2(y - centre_y, x - centre_x), np.hypot(x - centre_x, y - centre_y)
    outline = np.ones_like(angle)
    for order in range(2, 6):
        outline += generator.uniform(-0.25, 0.25) * np.cos(order * angle + generator.uniform(0.0, 2 * np.pi))
    return np.asarray(radius < generator.uniform(0.15, 0.35) * outline, dtype=np.float64)


_FAMILIES: tuple[Callable[[int, np.random.Generator], Field], ...] = (
    _thin_line,
    _thick_stroke,
    _irregular_patch,
    _weird_shape,
)


def _stroke(size: int, points: NDArray[np.float64], half_width: float) -> Field:
    """Pixels (S, S) within `half_width` (half pictures) of a line through points (P, 2)."""
    x, y = coordinates(size)
    nearest = np.full((size, size), np.inf)
    for (start_x, start_y), (end_x, end_y) in pairwise(points):
        along_x, along_y = end_x - start_x, end_y - start_y
        at = np.clip(((x - start_x) * along_x + (y - start_y) * along_y) / (along_x**2 + along_y**2), 0.0, 1.0)
        nearest = np.minimum(nearest, np.hypot(x - start_x - at * along_x, y - start_y - at * along_y))
    return (nearest < half_width).astype(np.float64)


def _smudged(cover: Field, sigma_pixels: float) -> Field:
    """A cover (S, S) with soft borders: a Gaussian blur."""
    reach = max(1, round(2 * sigma_pixels))
    offsets = np.arange(-reach, reach + 1)
    kernel = np.exp(-(offsets**2) / (2 * sigma_pixels**2))
    kernel /= kernel.sum()
    for axis in (0, 1):
        padded = np.pad(cover, [(reach, reach) if each == axis else (0, 0) for each in (0, 1)], mode="edge")
        cover = np.tensordot(np.lib.stride_tricks.sliding_window_view(padded, 2 * reach + 1, axis), kernel, axes=1)
    return cover


def _content(size: int, generator: np.random.Generator) -> NDArray[np.float64]:
    """What is painted (S, S, 3): white, black, or noise. A picture would look right, and no network could find it."""
    kind = generator.integers(3)
    if kind == 2:
        return generator.uniform(0.0, 1.0, (size, size, 3))
    return np.full((size, size, 3), float(kind))
