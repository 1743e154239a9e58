"""From the figures of a tensor to what is wrong with it. Each rule says why a healthy checkpoint does not meet it."""

from __future__ import annotations

import math
import statistics
from collections import defaultdict
from collections.abc import Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcstab.doctor.contents import StoredTensor, TensorFile
from hpcstab.doctor.findings import Finding, Part, Severity
from hpcstab.doctor.measure import Measured
from hpcstab.doctor.parts import Layout, Located

ABSURD = 2.0**64
"""Squared it leaves fp32: no norm, no moment and no weight decay can be computed of it."""
LARGE = 2.0**24
"""A product with it in an fp32 sum makes the sum forget every ordinary term (1 / eps)."""
LARGE_BESIDE_OTHERS = 1e4
"""And so many times the largest value of the median tensor of its part: a network of that scale throughout is none."""
FP16_EDGE = 65504.0 / 2
"""One doubling from Inf."""
SUBNORMAL_FRACTION = 0.5
_ROUNDING = 1e-3


class Rules:
    """Findings of all tensors of a file.

    Args:
        file: to look again at the few tensors that a figure alone does not decide.
    """

    def __init__(self, layout: Layout, values: Mapping[StoredTensor, Measured], file: TensorFile) -> None:
        self._layout = layout
        self._values = values
        self._file = file
        largest: dict[Part, list[float]] = defaultdict(list)
        for located in layout.tensors.values():
            if located.tensor.dtype.is_floating_point and located.tensor.num_values:
                largest[located.part].append(values[located.tensor].largest)
        self._usual = {part: statistics.median(found) for part, found in largest.items()}

    def findings(self) -> Iterator[Finding]:
        for located in self._layout.tensors.values():
            yield from self._of(located, self._values[located.tensor])
        for name, (part, number) in self._layout.numbers.items():
            if not math.isfinite(number) or (part == "scaler" and number <= 0):
                yield Finding("bad_number", "sick", part, name, f"is {number}: no step can be made with it", 1)

    def _of(self, located: Located, values: Measured) -> Iterator[Finding]:
        if not values.num_values:
            return
        if not (located.tensor.dtype.is_floating_point or located.tensor.dtype.is_complex):
            if located.role == "count" and not 0 <= values.minimum <= 1e12:
                text = f"counts {values.minimum:.0f} batches"
                yield self._finding("bad_count", located, values, text)
            return
        if values.num_nan or values.num_inf:
            yield self._nonfinite(located, values)
        if located.part == "other" or values.minimum != values.minimum:
            return
        yield from self._statistic(located, values)
        yield from self._optimizer(located, values)
        yield from self._magnitude(located, values)
        yield from self._small(located, values)

    def _nonfinite(self, located: Located, values: Measured) -> Finding:
        counts = [(values.num_nan, "NaN"), (values.num_plus_inf, "+Inf"), (values.num_minus_inf, "-Inf")]
        text = ", ".join(f"{count} {name}" for count, name in counts if count) + f" of {values.num_values}"
        only_minus = values.num_minus_inf == values.num_nan + values.num_inf
        if located.role == "observer" and not values.num_nan:
            return self._finding("untouched", located, values, f"{text}: an observer that has seen nothing yet", "note")
        if located.part == "other":
            return self._finding("inf" if not values.num_nan else "nan", located, values, text, "note")
        if located.part in ("weights", "ema") and only_minus and is_infinite_by_nature(self._file.read(located.tensor)):
            return self._finding("mask", located, values, f"{text}: a mask, or logarithms of probabilities", "note")
        code = "nan" if values.num_nan else "inf"
        assert values.first_nonfinite is not None
        first = located.tensor.index_of(values.first_nonfinite)
        return self._finding(code, located, values, text, first_index=first)

    def _statistic(self, located: Located, values: Measured) -> Iterator[Finding]:
        if located.role != "variance":
            return
        if values.minimum < 0:
            text = f"a variance below zero: {values.minimum:.4g} at the least; its root is NaN"
            yield self._finding("negative_variance", located, values, text)
        elif values.maximum == 0:
            text = "every variance is exactly 0: the layer divides by the root of eps alone"
            yield self._finding("zero_variance", located, values, text)
        elif values.minimum == 0:
            text = "some variances are exactly 0: channels that never change"
            yield self._finding("dead_channels", located, values, text, "note")

    def _optimizer(self, located: Located, values: Measured) -> Iterator[Finding]:
        if located.role == "second moment" and values.minimum < 0:
            text = f"a second moment below zero: {values.minimum:.4g} at the least; its root is NaN"
            yield self._finding("negative_moment", located, values, text)
        if located.role == "step" and values.minimum < 0:
            yield self._finding("bad_count", located, values, f"counts {values.minimum:.0f} steps")
        if located.role == "scale" and values.minimum <= 0:
            yield self._finding("bad_number", located, values, f"a loss scale of {values.minimum:.4g}")

    def _magnitude(self, located: Located, values: Measured) -> Iterator[Finding]:
        largest = values.largest
        if largest >= ABSURD:
            if not self._is_mask(located.tensor, ABSURD):
                text = f"a value of {largest:.3g}: squared it leaves fp32"
                yield self._beyond("absurd", located, values, text)
        elif located.part in ("weights", "ema") and values.num_values > 1 and largest >= LARGE:
            usual = self._usual[located.part]
            if largest >= LARGE_BESIDE_OTHERS * usual and not self._is_mask(located.tensor, LARGE):
                text = f"a value of {largest:.3g}, where the largest of the median tensor is {usual:.3g}"
                yield self._beyond("absurd", located, values, text)
        elif located.part == "batchnorm" and located.role in ("mean", "variance") and largest >= LARGE:
            usual = float(self._file.read(located.tensor).abs().nanmedian())
            if largest >= LARGE * max(usual, 1.0):
                text = f"a value of {largest:.3g}, where the median channel has {usual:.3g}"
                yield self._beyond("absurd", located, values, text)
        in_fp16 = located.tensor.dtype == torch.float16 and located.role != "scale"
        if in_fp16 and largest >= FP16_EDGE and not self._is_mask(located.tensor, FP16_EDGE):
            text = f"a value of {largest:.5g} in fp16, whose largest is 65504: Inf is one doubling away"
            yield self._beyond("at_the_edge", located, values, text)

    def _small(self, located: Located, values: Measured) -> Iterator[Finding]:
        if located.part not in ("weights", "ema", "optimizer") or len(located.tensor.shape) < 2:
            return
        tiny = torch.finfo(located.tensor.dtype).tiny
        if 0 < values.largest < tiny:
            text = f"all values are below the smallest normal number of its type ({tiny:.3g})"
            yield self._finding("underflow", located, values, text, "note")
        elif values.num_sampled and values.num_subnormal >= SUBNORMAL_FRACTION * values.num_sampled:
            share = values.num_subnormal / values.num_sampled
            text = f"{share:.0%} of the values are subnormal in fp16: most of their digits are lost"
            yield self._finding("underflow", located, values, text, "note")

    def _is_mask(self, tensor: StoredTensor, limit: float) -> bool:
        """One negative constant, in several places or alone in a tensor: what masks put where nothing may be seen."""
        values = self._file.read(tensor).flatten()
        beyond = values[values.abs() >= limit]
        return bool((beyond == beyond[0]).all()) and bool(beyond[0] < 0) and (len(beyond) > 1 or len(values) == 1)

    def _beyond(self, code: str, located: Located, values: Measured, text: str) -> Finding:
        found = self._file.read(located.tensor)
        place = int(_finite_magnitude(found).flatten().argmax())
        index = torch.unravel_index(torch.tensor(place), found.shape)
        first = tuple(int(axis) for axis in index)
        return self._finding(code, located, values, text, first_index=first)

    def _finding(
        self,
        code: str,
        located: Located,
        values: Measured,
        text: str,
        severity: Severity = "sick",
        first_index: tuple[int, ...] | None = None,
    ) -> Finding:
        counts: dict[str, Any] = {
            "num_values": values.num_values,
            "num_nan": values.num_nan,
            "num_inf": values.num_inf,
            "first_index": first_index,
        }
        return Finding(code, severity, located.part, located.name, text, **counts)


def is_infinite_by_nature(values: Tensor) -> bool:
    """Whether a tensor whose only non-finite values are -Inf was made so.

    It adds 0 or -Inf; or all above or all below a diagonal is -Inf (causal masks, with or without slopes); or it is the
    logarithm of probabilities that add up to 1. A weight that has gone to -Inf is none of these.
    """
    banned = values == -math.inf
    if int(banned.sum()) > 1 and not bool(values[~banned].any()):
        return True
    if values.dim() >= 2 and values.shape[-1] > 1 and values.shape[-2] > 1:
        everywhere = torch.ones_like(banned)
        if any(bool((banned == shape).all()) for shape in (everywhere.triu(1), everywhere.tril(-1))):
            return True
    total = values.double().exp().sum(-1) if values.dim() else values.new_zeros(1)
    return bool((total - 1).abs().max() < _ROUNDING)


def _finite_magnitude(values: Tensor) -> Tensor:
    return torch.where(values.isfinite(), values.abs(), torch.zeros_like(values))
