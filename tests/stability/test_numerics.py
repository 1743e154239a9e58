"""lower_bound against its definition."""

import pytest
import torch

from hpcstab.stability.numerics import lower_bound

VALUES = torch.tensor([-2.0, 0.5 - 1e-6, 0.5, 0.5 + 1e-6, 3.0], dtype=torch.float64)


def test_forward_is_the_maximum() -> None:
    assert torch.equal(lower_bound(VALUES, 0.5), VALUES.clamp(min=0.5))


def test_nan_stays_nan() -> None:
    assert lower_bound(torch.tensor([float("nan")]), 0.0).isnan().all()


@pytest.mark.parametrize("sign", [1.0, -1.0])
def test_gradient_passes_inside_or_when_descent_moves_upward(sign: float) -> None:
    values = VALUES.clone().requires_grad_()
    incoming = sign * torch.arange(1.0, 6.0, dtype=torch.float64)
    (gradient,) = torch.autograd.grad(lower_bound(values, 0.5), values, incoming)

    passes = torch.tensor([sign < 0, sign < 0, True, True, True])
    assert torch.equal(gradient, torch.where(passes, incoming, 0.0))


def test_descent_leaves_the_bound_and_a_clamp_would_not() -> None:
    stuck = torch.tensor([-0.1], requires_grad=True)
    bounded = torch.tensor([-0.1], requires_grad=True)
    for values, bound in ((stuck, lambda v: v.clamp(min=0.0)), (bounded, lambda v: lower_bound(v, 0.0))):
        optimizer = torch.optim.SGD([values], lr=0.1)
        for _ in range(50):
            optimizer.zero_grad()
            (bound(values) - 1.0).square().sum().backward()
            optimizer.step()
    assert stuck.item() == pytest.approx(-0.1)
    assert bounded.item() == pytest.approx(1.0, abs=1e-3)


def test_gradcheck_above_the_bound_to_second_order() -> None:
    values = torch.tensor([0.7, 1.0, 4.0], dtype=torch.float64, requires_grad=True)
    assert torch.autograd.gradcheck(lambda v: lower_bound(v, 0.5).pow(3), (values,))
    assert torch.autograd.gradgradcheck(lambda v: lower_bound(v, 0.5).pow(3), (values,))
