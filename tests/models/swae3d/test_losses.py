"""The sliced Wasserstein term against one computed by hand, and its gradient."""

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcstab.models.swae3d.losses import sliced_wasserstein, unit_directions


def draw(seed: int, num: int, dim: int) -> Tensor:
    return torch.randn(num, dim, dtype=torch.float64, generator=torch.Generator().manual_seed(seed))


def test_unit_directions_are_unit_seeded_and_spread() -> None:
    directions = unit_directions(2000, 3, torch.Generator().manual_seed(1), "cpu")
    again = unit_directions(2000, 3, torch.Generator().manual_seed(1), "cpu")
    assert torch.equal(directions, again)
    torch.testing.assert_close(directions.norm(dim=1), torch.ones(2000))
    # Uniform on the sphere: mean zero, covariance I / 3.
    assert directions.mean(dim=0).abs().max() < 0.05
    assert (directions.T @ directions / 2000 - torch.eye(3) / 3).abs().max() < 0.03


def test_equals_the_reference_sorted_by_hand() -> None:
    latents, prior = draw(0, 12, 4), draw(1, 12, 4)
    directions = torch.nn.functional.normalize(draw(2, 7, 4), dim=1)

    total = 0.0
    for direction in directions.numpy():
        pairs = zip(np.sort(latents.numpy() @ direction), np.sort(prior.numpy() @ direction), strict=True)
        total += np.mean([(a - b) ** 2 for a, b in pairs])
    expected = total / len(directions)

    assert sliced_wasserstein(latents, prior, directions).item() == pytest.approx(expected, rel=1e-12)


def test_one_dimension_is_the_cheapest_assignment() -> None:
    """Sorting is optimal transport in 1D: no pairing of the samples costs less."""
    optimize = pytest.importorskip("scipy.optimize")
    latents, prior = draw(3, 9, 1), draw(4, 9, 1)
    cost = (latents - prior.T).square().numpy()
    cheapest = cost[optimize.linear_sum_assignment(cost)].mean()
    distance = sliced_wasserstein(latents, prior, torch.ones(1, 1, dtype=torch.float64))
    assert distance.item() == pytest.approx(cheapest, rel=1e-12)


def test_zero_for_a_permuted_sample_and_squared_shift_for_a_shifted_one() -> None:
    latents = draw(5, 16, 3)
    directions = torch.eye(3, dtype=torch.float64)
    assert sliced_wasserstein(latents, latents.flip(0), directions).item() == pytest.approx(0.0, abs=1e-24)
    shifted = latents + torch.tensor([3.0, 0.0, 0.0], dtype=torch.float64)
    assert sliced_wasserstein(shifted, latents, directions).item() == pytest.approx(9.0 / 3)


def test_gradcheck() -> None:
    prior = draw(7, 5, 3)
    directions = torch.nn.functional.normalize(draw(8, 4, 3), dim=1)
    latents = draw(6, 5, 3).requires_grad_()
    assert torch.autograd.gradcheck(lambda z: sliced_wasserstein(z, prior, directions), (latents,))
