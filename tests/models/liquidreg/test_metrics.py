"""Figures of registrations whose figures are known."""

from __future__ import annotations

import math

import pytest
import torch

from hpcstab.models.liquidreg.metrics import (
    dice_by_label,
    endpoint_error,
    folding_share,
    mean_dice,
    psnr_db,
    reach,
    sd_log_jacobian,
)


def labels(*values: int) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.uint8).reshape(1, 1, 1, 1, -1)


def test_dice_by_hand() -> None:
    """Label 1: 2 shared of 3 and 2. Label 2: none shared. Label 3 stands in neither, background counts in none."""
    first, second = labels(1, 1, 1, 2, 0, 0), labels(1, 1, 0, 0, 2, 0)
    by_label = dice_by_label(first, second, num_labels=3)
    torch.testing.assert_close(by_label[0], torch.tensor([2 * 2 / 5, 0.0, math.nan]).double(), equal_nan=True)
    assert mean_dice(by_label).tolist() == pytest.approx([(2 * 2 / 5 + 0) / 2])
    assert mean_dice(dice_by_label(first, first, 3)).tolist() == [1.0]
    assert mean_dice(dice_by_label(first, second.float(), 3)).tolist() == mean_dice(by_label).tolist()
    both = torch.cat([first, second])
    together = mean_dice(dice_by_label(both, torch.cat([first, first]), 3))
    assert together.tolist() == [1.0, mean_dice(dice_by_label(second, first, 3)).item()]
    assert mean_dice(dice_by_label(labels(0, 0), labels(0, 0), 3)).tolist() == [0.0], "no label, no overlap"


def test_dice_is_that_of_monai() -> None:
    from monai.metrics import compute_dice

    generator = torch.Generator().manual_seed(0)
    first, second = (torch.randint(0, 4, (2, 1, 5, 6, 7), generator=generator) for _ in range(2))
    one_hot = [torch.nn.functional.one_hot(x[:, 0], 4).movedim(-1, 1) for x in (first, second)]
    reference = compute_dice(one_hot[0], one_hot[1], include_background=False).double()
    torch.testing.assert_close(dice_by_label(first, second, 3), reference, atol=1e-6, rtol=0.0)


def test_distances_count_inside_the_mask_alone() -> None:
    known = torch.zeros(1, 3, 2, 2, 2)
    found = known.clone()
    found[:, :, 0] = torch.tensor([3.0, 4.0, 0.0]).reshape(1, 3, 1, 1)
    found[:, :, 1] = 100.0
    mask = torch.zeros(1, 1, 2, 2, 2, dtype=torch.bool)
    mask[:, :, 0] = True
    assert endpoint_error(found, known, mask).tolist() == [5.0]
    assert reach(found, known + 8.0, mask).tolist() == [0.5]


def test_folding_and_unevenness() -> None:
    determinants = torch.tensor([1.0, 1.0, 0.0, -1.0]).reshape(1, 1, 2, 2)
    assert folding_share(determinants).tolist() == [0.5]
    logs = [math.log(4), math.log(4), math.log(3), math.log(2)]
    mean = sum(logs) / 4
    spread = math.sqrt(sum((value - mean) ** 2 for value in logs) / 4)
    assert sd_log_jacobian(determinants).tolist() == pytest.approx([spread])
    assert sd_log_jacobian(torch.ones(1, 1, 2, 2)).tolist() == [0.0]


def test_psnr_has_the_range_of_the_fixed_volume_as_its_peak() -> None:
    fixed = torch.linspace(1000.0, 1200.0, 27).reshape(1, 1, 3, 3, 3)
    assert psnr_db(fixed + 2.0, fixed).tolist() == pytest.approx([40.0])
    assert psnr_db(fixed, fixed).tolist() == pytest.approx([100.0])
