"""Synthetic brains and pairs with a known answer."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.brains import LABELS, random_brain
from hpcstab.data.diffeomorphisms import centred_grid, random_flow
from hpcstab.data.registration import anatomies, known_pair, normalized

EDGE = 24


def test_every_structure_is_there_and_seeds_differ() -> None:
    volumes = [
        anatomies(brain, brain, EDGE).fixed
        for brain in (random_brain(EDGE, np.random.default_rng(s)) for s in range(4))
    ]
    for volume in volumes:
        assert set(np.unique(volume.labels)) == set(range(len(LABELS) + 1))
    assert not np.array_equal(volumes[0].labels, volumes[1].labels)


def test_intensities_are_in_scanner_units_on_a_flat_offset() -> None:
    volume = anatomies(*[random_brain(EDGE, np.random.default_rng(0))] * 2, EDGE).fixed
    corner = volume.intensities[:4, :4, :4]
    assert corner.min() == pytest.approx(600.0, abs=0.1)
    assert 0.0 < corner.max() - corner.min() < 0.1, "flat, but for the tails of soft edges"
    white = volume.intensities[volume.labels == 3]
    assert 1300 < np.median(white) < 1510
    assert volume.intensities.dtype == np.float32


def test_the_known_answer_brings_moving_onto_fixed() -> None:
    """Looked up at the displaced places, labels are those of the fixed volume to the voxel."""
    generator = np.random.default_rng(0)
    brain = random_brain(EDGE, generator)
    pair = known_pair(brain, random_flow((EDGE,) * 3, 3.0, generator), EDGE)
    assert pair.displacement is not None
    places = centred_grid((EDGE,) * 3) + pair.displacement.reshape(3, -1).T
    intensities, labels = brain.look_up(places)
    assert np.mean(labels.reshape(pair.fixed.labels.shape) == pair.fixed.labels) > 0.9999
    np.testing.assert_allclose(intensities.reshape(pair.fixed.labels.shape), pair.fixed.intensities, atol=0.1)
    assert np.mean(pair.moving.labels == pair.fixed.labels) < 0.9
    np.testing.assert_array_equal(pair.moving.labels.ravel(), brain.look_up(centred_grid((EDGE,) * 3))[1])


def test_normalised_volumes() -> None:
    values = np.random.default_rng(0).uniform(500, 900, (4, 4, 4)).astype(np.float32)
    assert normalized(values, "none") is values
    scored, scaled = normalized(values, "zscore"), normalized(values, "minmax")
    assert (scored.mean(), scored.std()) == (pytest.approx(0.0, abs=1e-5), pytest.approx(1.0, rel=1e-5))
    assert (scaled.min(), scaled.max()) == (0.0, 1.0)
    for how in ("zscore", "minmax"):
        assert np.array_equal(normalized(np.full((2, 2, 2), 7.0, np.float32), how), np.zeros((2, 2, 2)))
