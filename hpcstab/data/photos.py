"""Seeded colour pictures with what photographs have: shading, textures of all scales, objects with edges. NumPy only.

S = edge in pixels. A picture depends on its generator and S alone.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

Field = NDArray[np.float64]  # (S, S)
Colours = NDArray[np.float64]  # (S, S, 3)

_NUM_OBJECTS = (4, 9)
_TEXTURE_SLOPE = (1.0, 2.0)  # spectral amplitude falls as 1 / frequency to this power; photographs have about 1


def photo(size: int, generator: np.random.Generator) -> NDArray[np.uint8]:
    """One picture (S, S, 3), uint8: a shaded, textured background with objects before it."""
    canvas = _surface(size, generator)
    for _ in range(generator.integers(*_NUM_OBJECTS)):
        cover = _object_cover(size, generator)[..., None]
        canvas += cover * (_surface(size, generator) - canvas)
    return to_bytes(canvas)


def to_bytes(colours: Colours) -> NDArray[np.uint8]:
    """Values in [0, 1] as uint8, what lies outside cut off."""
    return (np.clip(colours, 0.0, 1.0) * 255.0 + 0.5).astype(np.uint8)


def coordinates(size: int) -> tuple[Field, Field]:
    """x (S, S) to the right and y (S, S) downwards at the centres of the pixels, in (-1, 1)."""
    line = (np.arange(size) + 0.5) * (2.0 / size) - 1.0
    x, y = np.meshgrid(line, line)
    return x, y


def smooth_noise(size: int, slope: float, generator: np.random.Generator) -> Field:
    """Noise (S, S) of mean 0 and standard deviation 1 whose amplitude falls with frequency to the power `slope`."""
    frequencies = np.hypot(np.fft.fftfreq(size)[:, None], np.fft.rfftfreq(size)[None, :])
    frequencies[0, 0] = np.inf
    spectrum = np.fft.rfft2(generator.standard_normal((size, size))) / frequencies**slope
    noise = np.fft.irfft2(spectrum, s=(size, size))
    return np.asarray(noise / noise.std())


def _surface(size: int, generator: np.random.Generator) -> Colours:
    """A material: two colours that shading, texture and perhaps stripes mix."""
    dark, light = _two_colours(generator)
    x, y = coordinates(size)
    angle = generator.uniform(0.0, 2 * np.pi)
    mix = 0.5 + 0.35 * (np.cos(angle) * x + np.sin(angle) * y)
    mix += generator.uniform(0.02, 0.2) * smooth_noise(size, generator.uniform(*_TEXTURE_SLOPE), generator)
    if generator.random() < 0.35:
        mix += 0.25 * _stripes(x, y, generator)
    mixed: Colours = dark + np.clip(mix, 0.0, 1.0)[..., None] * (light - dark)
    return mixed


def _two_colours(generator: np.random.Generator) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """A colour (3,) and another of about its hue, darker and lighter; muted, as most things are."""
    base = generator.uniform(0.3, 0.7) + generator.uniform(-0.2, 0.2, 3)
    spread = generator.uniform(0.08, 0.25) + generator.uniform(-0.03, 0.03, 3)
    return np.clip(base - spread, 0.0, 1.0), np.clip(base + spread, 0.0, 1.0)


def _stripes(x: Field, y: Field, generator: np.random.Generator) -> Field:
    """Waves (S, S) in [-1, 1], 2 to 8 of them across a picture, in any direction."""
    angle, phase = generator.uniform(0.0, 2 * np.pi, 2)
    frequency = np.pi * generator.uniform(2.0, 8.0)
    return np.asarray(np.sin(frequency * (np.cos(angle) * x + np.sin(angle) * y) + phase))


def _object_cover(size: int, generator: np.random.Generator) -> Field:
    """How much of each pixel (S, S) an ellipse or a box covers, in [0, 1]."""
    x, y = coordinates(size)
    centre_x, centre_y = generator.uniform(-1.0, 1.0, 2)
    half_width, half_height = generator.uniform(0.12, 0.6, 2)
    angle = generator.uniform(0.0, np.pi)
    along = (np.cos(angle) * (x - centre_x) + np.sin(angle) * (y - centre_y)) / half_width
    across = (np.cos(angle) * (y - centre_y) - np.sin(angle) * (x - centre_x)) / half_height
    is_box = generator.random() < 0.5
    radius = np.maximum(np.abs(along), np.abs(across)) if is_box else np.hypot(along, across)
    distance = (1.0 - radius) * min(half_width, half_height)  # to the edge, in half pictures, > 0 inside
    return np.asarray(np.clip(0.5 + distance * (size / 2), 0.0, 1.0))
