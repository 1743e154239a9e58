"""The norm that clipping needs: torch's own, to the bit, for gradients of any type."""

from __future__ import annotations

import math

import pytest
import torch

from hpcstab.stability.gate.clipping import clip_scale_of, total_norm

MIXED = (torch.float32, torch.bfloat16, torch.float64)


@pytest.mark.parametrize("dtypes", [(torch.float32,), (torch.float64,), (torch.bfloat16,), (torch.float16,), MIXED])
def test_the_norm_is_torch_s_own(dtypes: tuple[torch.dtype, ...]) -> None:
    torch.manual_seed(0)
    gradients = [torch.randn(shape).to(dtype) for dtype in dtypes for shape in ((), (7,), (3, 5), (2, 3, 4, 5))]
    gradients.append(torch.randn(6, 4).t().to(dtypes[0]))
    assert torch.equal(total_norm(gradients), torch.nn.utils.get_total_norm(gradients))


@pytest.mark.parametrize(("value", "expected"), [(math.nan, "nan"), (math.inf, "inf"), (1e30, "inf")])
def test_a_bad_gradient_or_an_overflow_is_in_the_norm(value: float, expected: str) -> None:
    assert str(float(total_norm([torch.ones(3), torch.tensor([1.0, value])]))) == expected


def test_the_factor_that_a_divisor_means() -> None:
    assert [clip_scale_of(divisor) for divisor in (1.0, 4.0, math.inf)] == [1.0, 0.25, 0.0]
    assert math.isnan(clip_scale_of(math.nan))
