"""Numerically safe building blocks that models may use."""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor


class _LowerBound(torch.autograd.Function):
    @staticmethod
    def forward(values: Tensor, bound: float) -> Tensor:
        return values.clamp(min=bound)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: Tensor) -> None:
        values, bound = inputs
        ctx.save_for_backward(values)
        ctx.bound = bound

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, None]:
        (gradient,) = grad_outputs
        (values,) = ctx.saved_tensors
        # Descent subtracts the gradient: a negative one moves a value below the bound back towards it.
        # A clamp would return zero there and the value could never come back.
        passes = (values >= ctx.bound) | (gradient < 0)
        return torch.where(passes, gradient, 0.0), None


def lower_bound(values: Tensor, bound: float) -> Tensor:
    """`max(values, bound)` with a gradient that lets values below the bound come back.

    Args:
        values: any shape, any floating dtype. NaN stays NaN.
        bound: the smallest value that is returned, in the units of `values`.

    Returns:
        A tensor of the shape and dtype of `values`. Its gradient is the incoming gradient where
        `values >= bound` or where the incoming gradient is negative (descent would raise the value), and zero
        elsewhere. It can be differentiated twice (the mask counts as a constant).

    Source: Balle, "Efficient Nonlinear Transforms for Lossy Image Compression" (PCS 2018); `lower_bound` of
    TensorFlow Compression with `gradient="identity_if_towards"`.
    """
    return cast(Tensor, _LowerBound.apply(values, bound))  # type: ignore[no-untyped-call]
