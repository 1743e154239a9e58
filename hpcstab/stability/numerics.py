"""Numerically safe building blocks that models may use."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable
from typing import Any, ParamSpec, TypeVar, cast

import torch
from torch import Tensor

Parameters = ParamSpec("Parameters")
Result = TypeVar("Result")


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


def at_least_fp32(values: Tensor) -> Tensor:
    """fp16 and bf16 as fp32, anything wider as it is: for sums and losses, instead of ``.float()``.

    ``.float()`` would round fp64 down, and a replay in fp64 could not tell whether precision was the cause.
    """
    return values.float() if values.dtype in (torch.float16, torch.bfloat16) else values


def fp32_island(function: Callable[Parameters, Result]) -> Callable[Parameters, Result]:
    """``function`` in full precision inside an autocast region: for a loss term that fp16 or bf16 would break.

    Autocast is off within it, and fp16 and bf16 tensors among its arguments, also inside tuples, lists and dicts,
    arrive as fp32; gradients go back through the conversion. Other arguments are handed on as they are, fp64 too.
    Use it as a decorator of a function or method, or as ``fp32_island(module)(x)`` for one call of a module whose
    parameters are fp32. Without autocast it changes nothing for fp32 arguments.

    It cannot bring back what was lost before it: an activation that overflowed fp16 arrives as inf.
    """

    @functools.wraps(function, updated=())  # a module's __dict__ is its own
    def in_fp32(*args: Parameters.args, **kwargs: Parameters.kwargs) -> Result:
        with contextlib.ExitStack() as stack:
            for device_type in filter(torch.is_autocast_enabled, ("cpu", "cuda")):  # turning off what is off takes time
                stack.enter_context(torch.autocast(device_type, enabled=False))
            return function(*_widened(args), **_widened(kwargs))

    return in_fp32


def _widened(value: Any) -> Any:
    if isinstance(value, Tensor):
        return at_least_fp32(value)
    if isinstance(value, dict):
        return {key: _widened(entry) for key, entry in value.items()}
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        return type(value)(*map(_widened, value))
    if isinstance(value, (list, tuple)):
        return type(value)(_widened(entry) for entry in value)
    return value
