"""Synthetic chest films: seeded by film, alike at every size, and not all the same."""

import numpy as np
import pytest

from hpcstab.data.lungs import chest_film, draw_chest
from hpcstab.errors import DataError


def films(num: int, size: int = 32, seed: int = 0) -> np.ndarray:
    return np.stack([chest_film(size, seed, number) for number in range(num)]) / 255.0


def test_a_film_depends_on_seed_and_number_alone() -> None:
    first = chest_film(32, 0, 7)
    chest_film(32, 0, 8)
    assert np.array_equal(first, chest_film(32, 0, 7))
    assert not np.array_equal(first, chest_film(32, 1, 7))
    assert draw_chest(0, 7) != draw_chest(0, 8)


def test_films_are_bytes_with_air_and_tissue() -> None:
    film = chest_film(64, 0, 0)
    assert film.shape == (64, 64)
    assert film.dtype == np.uint8
    assert film.min() < 20
    assert film.max() > 180


def test_lungs_are_darker_than_the_middle() -> None:
    average = films(60).mean(0)
    lungs, middle = (average[13:18, 8:11], average[13:18, 21:24]), average[13:18, 15:17]
    assert max(lung.mean() for lung in lungs) < middle.mean() - 0.15


def test_the_same_chest_at_another_size() -> None:
    """All that differs is noise and what the pixels average over."""
    for number in range(3):
        large = chest_film(128, 0, number).reshape(64, 2, 64, 2).mean((1, 3)) / 255.0
        small = chest_film(64, 0, number) / 255.0
        assert np.abs(large - small).mean() < 0.03


def test_their_mean_image_is_no_good_answer() -> None:
    some = films(80)
    squared = ((some[60:] - some[:60].mean(0)) ** 2).mean((1, 2))
    assert -10 * np.log10(squared).mean() < 17
    assert len(np.unique(some.reshape(80, -1), axis=0)) == 80


def test_too_small_for_a_chest() -> None:
    with pytest.raises(DataError, match="a chest film of 8 pixels was asked for: at least 16"):
        chest_film(8, 0, 0)
