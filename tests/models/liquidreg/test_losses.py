"""The regularising terms: by hand, in fp64, and their gradients."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from hpcstab.models.liquidreg.losses import diffusion, folding, liquid_stability, mean_square, volume_change

TERMS: dict[str, tuple[Callable[[Tensor], Tensor], tuple[int, ...]]] = {
    "volume_change": (volume_change, (1, 2, 3, 4)),
    "folding": (folding, (1, 2, 3, 4)),
    "mean_square": (mean_square, (1, 3, 2, 3, 4)),
    "diffusion": (diffusion, (1, 3, 2, 3, 4)),
    "liquid_stability": (liquid_stability, (2, 40)),
}


def test_values_by_hand() -> None:
    determinants = torch.tensor([[[[1.0, 2.0, -0.5, 0.0]]]])
    assert float(volume_change(determinants)) == pytest.approx((0 + 1 + 2.25 + 1) / 4)
    assert float(folding(determinants)) == pytest.approx(0.5 / 4)
    assert float(mean_square(torch.full((1, 3, 2, 2, 2), 3.0))) == 9.0


def test_diffusion_of_a_ramp() -> None:
    """One component rises by 2 voxels a voxel along one axis: 2^2, and nothing for a shift."""
    displacement = torch.full((1, 3, 4, 4, 4), 7.0)
    assert float(diffusion(displacement)) == 0.0
    displacement[:, 1] += 2.0 * torch.arange(4.0)
    assert float(diffusion(displacement)) == pytest.approx(4.0)


def test_liquid_stability_by_hand() -> None:
    """100 weights of 0.1, five of them 0.3: the quantile lies between, the excess is that of the five."""
    weights = torch.full((1, 100), 0.1)
    weights[0, :5] = -0.3
    tail = 0.1 + 0.2 * (0.95 * 99 - 94)  # between the 95th and the 96th of 100 values in order
    expected = (95 * 0.01 + 5 * 0.09) / 100 + 5 * (0.3 - tail) / 100 + 0.1 * 0.3
    assert float(liquid_stability(weights)) == pytest.approx(expected, abs=1e-4)


@pytest.mark.parametrize("name", TERMS)
def test_twins_in_fp64_and_gradients(name: str) -> None:
    term, shape = TERMS[name]
    values = torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(0)).requires_grad_()
    assert float(term(values.detach().float())) == pytest.approx(float(term(values.detach())), rel=1e-5)
    if name != "liquid_stability":  # its quantile is a constant to autograd
        assert torch.autograd.gradcheck(term, (values,))
    term(values).backward()
    assert values.grad is not None
    assert bool(values.grad.isfinite().all())
