"""Which tensors are called non-finite: every one that is, none that only sums up to more than its type holds."""

from __future__ import annotations

import math

import pytest
import torch

from hpcstab.stability.finite import nonfinite_names


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_one_value_in_many_is_found_wherever_it_is(value: float, dtype: torch.dtype) -> None:
    for place in (0, 12_345, 99_999):
        tensor = torch.ones(100_000, dtype=dtype)
        tensor[place] = value
        assert nonfinite_names([("a", torch.ones(3)), ("b", tensor), ("c", tensor)]) == ["b", "c"]


def test_opposite_infinities_do_not_cancel() -> None:
    assert nonfinite_names([("a", torch.tensor([math.inf, -math.inf]))]) == ["a"]


def test_a_sum_that_overflows_is_no_finding() -> None:
    large = torch.full((4096,), torch.finfo(torch.float16).max, dtype=torch.float16)
    assert nonfinite_names([("a", large), ("b", torch.full((9,), 3e38))]) == []


def test_integers_and_nothing_are_finite() -> None:
    assert nonfinite_names([("a", torch.ones(3, dtype=torch.int64)), ("b", torch.empty(0))]) == []
    assert nonfinite_names([]) == []
