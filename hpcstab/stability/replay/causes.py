"""Why an operation made a non-finite value from finite ones, and what would keep it from that.

The rules read the ranges of its inputs. ``domain``: an input lies where the function, or its slope, has no finite
value. ``overflow``: the result is too large for its number format. ``cast``: the same in a conversion to a smaller
one. ``infinity``: infinities that the code asked for (a mask) cancelled out or were summed up.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from hpcstab.stability.replay.operations import Operation, TensorFacts

Cause = Literal["domain", "overflow", "cast", "infinity", "uninitialised"]
_TINY = 1e-20
"""A divisor this small makes inf of ordinary numbers in fp32 sooner or later: it is a zero in all but name."""


@dataclass(frozen=True)
class Explanation:
    """``text`` says what happened in figures, ``remedy`` what to bound and how."""

    cause: Cause
    text: str
    remedy: str


@dataclass(frozen=True)
class _Domain:
    """Where a function has no finite value: ``leaves(minimum, maximum, absmin)`` of its input."""

    leaves: Callable[[float, float, float], bool]
    must: str
    remedy: str


_POSITIVE = _Domain(lambda low, high, near: low <= 0, "must be above 0", "bound it from below: x.clamp(min=eps)")
_DIVISOR = _Domain(
    lambda low, high, near: near <= _TINY,
    "must stay away from 0",
    "keep it away from 0: add an eps, or bound it as stability.numerics.lower_bound does",
)
_INSIDE_ONE = _Domain(
    lambda low, high, near: low < -1 or high > 1, "must lie in [-1, 1]", "clamp it to [-1 + eps, 1 - eps]"
)
_FORWARD: dict[str, _Domain] = {
    "log": _POSITIVE,
    "log2": _POSITIVE,
    "log10": _POSITIVE,
    "rsqrt": _POSITIVE,
    "log1p": _Domain(lambda low, high, near: low <= -1, "must be above -1", "bound it: x.clamp(min=-1 + eps)"),
    "sqrt": _Domain(lambda low, high, near: low < 0, "must not be below 0", "bound it from below: x.clamp(min=eps)"),
    "reciprocal": _DIVISOR,
    "acos": _INSIDE_ONE,
    "asin": _INSIDE_ONE,
    "atanh": _Domain(lambda low, high, near: low <= -1 or high >= 1, "must lie in (-1, 1)", _INSIDE_ONE.remedy),
    "logit": _Domain(lambda low, high, near: low <= 0 or high >= 1, "must lie in (0, 1)", "give it an eps"),
    "acosh": _Domain(lambda low, high, near: low < 1, "must not be below 1", "bound it: x.clamp(min=1 + eps)"),
}  # fmt: skip
_DIVIDES = {"div", "true_divide", "reciprocal", "remainder", "fmod", "addcdiv"}
_SLOPES: dict[str, str] = {
    "sqrt": "the root has an infinite slope at 0: take it of x.clamp(min=eps) or of x + eps",
    "rsqrt": "its slope has no finite value near 0: take it of x.clamp(min=eps)",
    "log": "its slope is 1/x: take it of x.clamp(min=eps), also where torch.where discards the result",
    "div": "the slope of a quotient is 1/divisor: keep the divisor away from 0",
    "reciprocal": "its slope is -1/x^2: keep x away from 0",
    "pow": "a power below 1 has an infinite slope at 0: take it of x.clamp(min=eps)",
    "linalg_vector_norm": "the norm has no slope at 0: add eps under the root, (x.square().sum() + eps).sqrt()",
    "std": "the standard deviation has an infinite slope where all values are equal: use (x.var() + eps).sqrt()",
    "acos": "its slope is infinite at -1 and 1: clamp to [-1 + eps, 1 - eps]",
    "asin": "its slope is infinite at -1 and 1: clamp to [-1 + eps, 1 - eps]",
    "atan2": "its slope has no value at (0, 0): keep one argument away from 0",
    "exp": "its slope is its value, and that overflowed: clamp its input, also where torch.where discards the result",
    "native_layer_norm": "a constant row has variance 0: give the layer an eps above 0",
    "native_batch_norm": "a constant channel has variance 0: give the layer an eps above 0",
}
_DEGENERATE: dict[str, str] = {
    "std": "one value has no standard deviation: use correction=0, or more values",
    "var": "one value has no variance: use correction=0, or more values",
    "mean": "the mean of no values is NaN: divide by count.clamp(min=1)",
    "native_layer_norm": "a constant row has variance 0: give the layer an eps above 0",
    "native_group_norm": "a constant group has variance 0: give the layer an eps above 0",
    "native_batch_norm": "a constant channel, or one value per channel, has variance 0: give the layer an eps above 0",
}
_GROWS = {
    "exp", "exp2", "expm1", "sinh", "cosh", "pow", "prod", "cumprod", "cumsum", "sum", "mean", "mm", "bmm", "addmm",
    "baddbmm", "addbmm", "convolution", "linear", "softplus", "linalg_vector_norm", "scatter_add", "index_add",
}  # fmt: skip
"""Their results can be too large where no single input is."""
_BOUND_INPUT = "bound its input, e.g. with a clamp, or rescale it"
_LARGEST = {"float16": 65504.0, "bfloat16": 3.39e38, "float32": 3.4e38}


def explain(operation: Operation) -> Explanation:
    """The cause, in the figures of this operation."""
    if operation.kind == "uninitialised":
        return Explanation("uninitialised", "memory was read that nobody had written", "fill what torch.empty gives")
    if operation.parents or operation.kind == "placed":
        return _infinity(operation)
    if operation.family == "_to_copy" and operation.inputs and operation.outputs:
        return _cast(operation.inputs[0], operation.outputs[0].dtype)
    return _forward(operation) if operation.direction == "forward" else _backward(operation)


def _cast(source: TensorFacts, dtype: str) -> Explanation:
    text = f"{_range(source)} does not fit {dtype} (largest {_LARGEST.get(dtype, 0.0):g})"
    return Explanation("cast", text, "keep this part in fp32 (torch.autocast(enabled=False)), or rescale it")


def _forward(operation: Operation) -> Explanation:
    family, inputs = operation.family, operation.inputs
    first = inputs[0] if inputs else None
    domain = _FORWARD.get(family)
    if domain and first is not None and first.minimum is not None and _leaves(domain, first):
        return Explanation("domain", f"its input has {_range(first)} and {domain.must}", domain.remedy)
    quotient = _division(operation)
    if quotient:
        return quotient
    if family == "pow" and _leaves_power(operation):
        return Explanation(
            "domain", f"{_ranges(operation)}: this power has no finite value there", "bound its base from below"
        )
    if family in _DEGENERATE and not _is_large(operation):
        return Explanation(
            "domain", f"{_ranges(operation) or 'no values'}: no spread to divide by", _DEGENERATE[family]
        )
    return _overflow(operation)


def _backward(operation: Operation) -> Explanation:
    slope = _SLOPES.get(operation.source_family)
    if slope and not _is_large(operation):
        return Explanation("domain", f"in the backward of {operation.source_family}, {_ranges(operation)}", slope)
    quotient = _division(operation)
    return quotient or _overflow(operation)


def _division(operation: Operation) -> Explanation | None:
    """Where a divisor is zero, or as good as zero."""
    if operation.family not in _DIVIDES or not operation.inputs:
        return None
    divisor = operation.inputs[-1]
    smallest = abs(operation.scalars["other"]) if "other" in operation.scalars else divisor.absmin
    if smallest is None or smallest > _TINY:
        return None
    remedy = _SLOPES.get(operation.source_family, _DIVISOR.remedy) if operation.source else _DIVISOR.remedy
    said = "has a 0" if smallest == 0 else f"comes down to {smallest:.3g}"
    return Explanation("domain", f"its divisor {said} ({_ranges(operation)})", remedy)


def _infinity(operation: Operation) -> Explanation:
    asked = operation if operation.kind == "placed" else _first_placed(operation)
    by = f"{asked.name}{f' at {asked.place}' if asked.place else ''}"
    if operation.kind == "placed":
        text = f"the infinity that {by} puts there reaches the loss"
    else:
        text = f"its input holds nothing but infinities where it should not: they come from {by}"
    return Explanation("infinity", text, "never mask all entries of a row, nor the one that the loss reads")


def _overflow(operation: Operation) -> Explanation:
    """Too large for its format; where nothing is large and nothing adds up, the function has no value there."""
    if not _is_large(operation) and operation.family not in _GROWS:
        where = f" in the backward of {operation.source_family}" if operation.source else ""
        return Explanation(
            "domain", f"{_ranges(operation)}: {operation.family}{where} has no finite value there", _BOUND_INPUT
        )
    dtype = operation.outputs[0].dtype if operation.outputs else "float32"
    text = f"{_ranges(operation)}: the result is too large for {dtype} (largest {_LARGEST.get(dtype, 1.8e308):g})"
    return Explanation("overflow", text, _BOUND_INPUT)


def _leaves(domain: _Domain, facts: TensorFacts) -> bool:
    low, high, near = facts.minimum, facts.maximum, facts.absmin
    return low is not None and high is not None and near is not None and domain.leaves(low, high, near)


def _leaves_power(operation: Operation) -> bool:
    base = operation.inputs[0]
    exponents = [operation.scalars[name] for name in ("exponent",) if name in operation.scalars]
    exponents += [facts.minimum for facts in operation.inputs[1:] if facts.minimum is not None]
    if base.minimum is None or base.absmin is None or not exponents:
        return False
    exponent = exponents[0]
    return (base.minimum < 0 and exponent != round(exponent)) or (base.absmin <= _TINY and exponent < 0)


def _is_large(operation: Operation) -> bool:
    """Whether an input comes near the largest value of its format: to overflow, something has to be large."""
    return any(
        facts.absmax is not None and facts.absmax > min(1e15, _LARGEST.get(facts.dtype, 1e300) ** 0.5)
        for facts in operation.inputs
    )


def _first_placed(operation: Operation) -> Operation:
    while operation.parents:
        operation = operation.parents[0]
    return operation


def _ranges(operation: Operation) -> str:
    return ", ".join(f"{facts.name} {_range(facts)}" for facts in operation.inputs if facts.minimum is not None)


def _range(facts: TensorFacts) -> str:
    if facts.minimum is None or facts.maximum is None:
        return "no finite value"
    return f"[{facts.minimum:.4g}, {facts.maximum:.4g}]"
