"""Seeded flows: exact enough, one to one, as large as asked for."""

from __future__ import annotations

import numpy as np
import pytest

from hpcstab.data.diffeomorphisms import Flow, centred_grid, random_flow

SHAPE = (12, 14, 16)


def flow(seed: int = 0, largest: float = 2.0) -> Flow:
    return random_flow(SHAPE, largest, np.random.default_rng(seed))


@pytest.mark.parametrize("seed", range(3))
def test_four_steps_are_enough(seed: int) -> None:
    """Against 64 steps: a thousandth of a voxel."""
    points = centred_grid(SHAPE)
    coarse, fine = (flow(seed).displacement(points, num_steps) for num_steps in (4, 64))
    assert np.abs(coarse - fine).max() < 1e-3
    assert np.abs(fine).max() > 0.5


@pytest.mark.parametrize("seed", range(3))
def test_the_opposite_flow_leads_back(seed: int) -> None:
    points = centred_grid(SHAPE)
    there = points + flow(seed).displacement(points)
    back = there + flow(seed).scaled(-1.0).displacement(there)
    np.testing.assert_allclose(back, points, atol=2e-3)


def test_a_constant_velocity_is_a_shift() -> None:
    shift = Flow(np.zeros((1, 3)), np.array([[1.0, -2.0, 0.5]]), np.zeros((1, 3)))
    np.testing.assert_allclose(shift.displacement(centred_grid((2, 2, 2))), [[1.0, -2.0, 0.5]] * 8)


def test_size_and_seed() -> None:
    largest = [np.abs(flow(seed, 3.0).velocity(centred_grid(SHAPE))).max() for seed in range(5)]
    assert 2.7 < min(largest) <= max(largest) < 3.3
    np.testing.assert_array_equal(flow(1).cosines, flow(1).cosines)
    assert not np.array_equal(flow(1).cosines, flow(2).cosines)


def test_no_flow_folds() -> None:
    """Neighbours keep their order along each axis, also where displacements are as large as a quarter of the volume."""
    for seed in range(5):
        moved = (centred_grid(SHAPE) + flow(seed, 3.0).displacement(centred_grid(SHAPE))).reshape(*SHAPE, 3)
        slopes = np.stack(np.gradient(moved, axis=(0, 1, 2)), axis=-1)
        assert np.linalg.det(slopes).min() > 0.0
