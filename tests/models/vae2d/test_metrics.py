"""The figures of vae2d on images and latents whose answer is known."""

from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from hpcstab.models.vae2d.metrics import (
    active_units,
    aggregate_kl,
    diversity,
    grid_powers,
    sharpness,
)


def noise(seed: int, *shape: int) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def checkerboard_db(images: Tensor) -> float:
    on_grid, beside = grid_powers(images)
    return 10.0 * math.log10(float(on_grid / beside))


def test_sharpness_of_a_ramp_is_its_slope() -> None:
    ramp = torch.arange(16.0).expand(2, 1, 16, 16) * 0.03
    assert sharpness(ramp).tolist() == pytest.approx([0.03, 0.03])


def test_blur_lowers_sharpness() -> None:
    images = noise(0, 2, 1, 32, 32)
    assert (sharpness(functional.avg_pool2d(images, 3, 1, 1)) < 0.5 * sharpness(images)).all()


def test_diversity_is_the_variance_between_images() -> None:
    images = noise(1, 64, 1, 16, 16)
    assert float(diversity(images)) == pytest.approx(1.0, rel=0.05)
    assert float(diversity(images[:1].expand(8, -1, -1, -1))) == 0.0
    assert float(diversity(images[:1])) == 0.0


def test_diversity_does_not_depend_on_the_order_of_a_series() -> None:
    """Slices in order are near-copies of their neighbours; differences of neighbours gave a seventh."""
    series = torch.linspace(0.0, 1.0, 40).reshape(40, 1, 1, 1).expand(-1, 1, 8, 8)
    assert float(diversity(series)) == pytest.approx(float(series[:, 0, 0, 0].var()), rel=1e-4)


@pytest.mark.parametrize("period", [2, 4])
def test_a_grid_shows_and_its_absence_too(period: int) -> None:
    smooth = functional.avg_pool2d(noise(2, 16, 1, 68, 68), 5, 1)
    assert abs(checkerboard_db(noise(3, 16, 1, 64, 64))) < 0.5
    assert checkerboard_db(smooth) < 1.0
    grid = torch.zeros(64, 64)
    grid[::period, ::period] = 0.5
    assert checkerboard_db(smooth + grid) > 10.0


def test_active_units_are_counted() -> None:
    means = torch.zeros(40, 3, 2, 2)
    means[:, 0, 0] = noise(4, 40, 2)  # two vary with a variance of 1
    means[:, 1, 1, 1] = 0.05 * noise(5, 40)  # one with 0.0025
    means[:, 2] = 7.0  # constant, however far from 0
    assert int(active_units(means)) == 2


def test_aggregate_kl_is_zero_where_posteriors_fill_the_prior() -> None:
    means = 0.8 * noise(6, 4000, 2, 1, 1)
    logvar = torch.full_like(means, math.log(1.0 - 0.64))
    assert float(aggregate_kl(means, logvar)) == pytest.approx(0.0, abs=1e-3)
    apart = torch.tensor([-3.0, 3.0]).reshape(2, 1, 1, 1)  # two narrow clusters: variance 9
    expected = 0.5 * (9.0 - 1.0 - math.log(9.0))
    assert float(aggregate_kl(apart, torch.full_like(apart, -20.0))) == pytest.approx(expected, rel=1e-6)
