"""Seeded pictures: repeatable, colourful, and with the statistics of photographs."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.photos import photo, smooth_noise


def test_a_picture_is_its_seed_and_of_many_colours() -> None:
    first, again, other = (photo(32, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert (first.shape, first.dtype) == ((32, 32, 3), np.uint8)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)
    assert len(np.unique(first.reshape(-1, 3), axis=0)) > 300


def test_neighbouring_pixels_are_alike_as_in_photographs() -> None:
    """Correlation of neighbours above 0.9 on average: textures are no white noise."""
    pictures = [photo(64, np.random.default_rng(seed)).astype(float) for seed in range(8)]
    correlations = [np.corrcoef(each[:, 1:].ravel(), each[:, :-1].ravel())[0, 1] for each in pictures]
    assert np.mean(correlations) > 0.9


def test_noise_has_unit_deviation_and_falls_with_frequency() -> None:
    noise = smooth_noise(64, 1.5, np.random.default_rng(0))
    assert (noise.mean(), noise.std()) == (pytest.approx(0.0, abs=1e-12), pytest.approx(1.0))
    power = np.abs(np.fft.rfft2(noise)) ** 2
    assert power[1:5, 1:5].mean() > 100 * power[16:32, 16:].mean()
