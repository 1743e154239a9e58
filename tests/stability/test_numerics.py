"""lower_bound against its definition."""

from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.stability.numerics import fp32_island, lower_bound

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


def energy(values: Tensor) -> Tensor:
    """Sum of squares as a matrix product, which autocast runs in half precision."""
    return (values @ values.transpose(0, 1)).diagonal().sum()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp32_island_computes_in_fp32_inside_autocast(dtype: torch.dtype) -> None:
    values = torch.full((2, 64), 100.0 + 1 / 64, dtype=torch.float32, requires_grad=True)
    with torch.autocast("cpu", dtype=dtype):
        half = energy(values)
        island = fp32_island(energy)(values)
        assert torch.is_autocast_enabled("cpu")
    assert half.dtype == dtype
    assert not torch.equal(half.float(), energy(values))  # fp16: inf; bf16: rounded away
    assert torch.equal(island, energy(values))
    island.backward()  # type: ignore[no-untyped-call]
    assert torch.equal(values.grad, 2.0 * values.detach())  # type: ignore[arg-type]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_an_fp32_island_widens_what_comes_in_wherever_it_stands(dtype: torch.dtype) -> None:
    half = torch.ones(2, dtype=dtype)

    @fp32_island
    def seen(*args: Any, **kwargs: Any) -> Any:
        return args, kwargs

    args, kwargs = seen(half, [half, 3], (half,), name={"deep": half}, whole=torch.ones(2, dtype=torch.int64))
    assert (args[0].dtype, args[1][0].dtype, args[2][0].dtype, kwargs["name"]["deep"].dtype) == (torch.float32,) * 4
    assert args[1][1] == 3
    assert kwargs["whole"].dtype == torch.int64
    assert seen(torch.ones(2, dtype=torch.float64))[0][0].dtype == torch.float64


def test_an_fp32_island_around_a_module_hands_gradients_back_in_half() -> None:
    module = nn.Linear(3, 1)
    half = torch.ones(2, 3, dtype=torch.float16, requires_grad=True)
    with torch.autocast("cpu", dtype=torch.float16):
        out = fp32_island(module)(half)
    assert out.dtype == torch.float32
    out.sum().backward()
    assert half.grad is not None
    assert half.grad.dtype == torch.float16
    assert module.weight.grad is not None
