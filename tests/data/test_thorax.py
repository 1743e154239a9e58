"""Procedural thoraxes: the same for a key, different between samples, and made of what a thorax is made of."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.thorax import CONTRAST_HU, LUNG_HU, TISSUE_HU, thorax
from hpcstab.errors import DataError


def share_near(volume: np.ndarray, value: float, within: float = 60.0) -> float:
    return float((np.abs(volume - value) < within).mean())


def test_depends_on_seed_and_number_alone() -> None:
    first = thorax(16, 0, 3)
    assert (first.shape, first.dtype) == ((16, 16, 16), np.float32)
    assert np.array_equal(first, thorax(16, 0, 3))
    assert not np.array_equal(first, thorax(16, 1, 3))
    assert not np.array_equal(first, thorax(16, 0, 4))


def test_holds_air_lungs_tissue_and_vessels_in_hounsfield_units() -> None:
    volume = thorax(48, 0, 0)
    assert share_near(volume, -1000.0) > 0.3
    assert 0.04 < share_near(volume, LUNG_HU) < 0.25
    assert 0.1 < share_near(volume, TISSUE_HU) < 0.5
    assert 0.002 < share_near(volume, CONTRAST_HU) < 0.05
    assert -1024.0 <= volume.min() < -1000.0
    assert volume.max() > 400.0


def test_the_same_anatomy_at_every_size() -> None:
    small, large = thorax(16, 0, 1), thorax(32, 0, 1)
    shrunk = large.reshape(16, 2, 16, 2, 16, 2).mean((1, 3, 5))
    assert np.corrcoef(small.ravel(), shrunk.ravel())[0, 1] > 0.95


def test_the_mean_thorax_is_no_good_answer() -> None:
    """Samples differ by far more than their noise of 12 HU."""
    volumes = np.stack([thorax(16, 0, number) for number in range(8)])
    assert volumes.std(0).mean() > 60.0


def test_too_small() -> None:
    with pytest.raises(DataError, match="at least 8"):
        thorax(4, 0, 0)
