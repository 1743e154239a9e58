"""PSNR and SSIM: a plain twin, and pairs of images whose figures are known."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor

from hpcstab.models.wavessm.quality import masked_mean, psnr_db, ssim_map


def plain_ssim(images: np.ndarray, truth: np.ndarray) -> np.ndarray:
    """Wang et al. 2004, pixel by pixel: an 11 x 11 Gaussian of sigma 1.5, K = 0.01 and 0.03, reflected edges."""
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2))
    window = np.outer(line, line) / line.sum() ** 2
    result = np.empty_like(images)
    edges = [(0, 0), (0, 0), (5, 5), (5, 5)]
    padded_images, padded_truth = np.pad(images, edges, mode="reflect"), np.pad(truth, edges, mode="reflect")
    for index in np.ndindex(images.shape):
        image, channel, y, x = index
        ours = padded_images[image, channel, y : y + 11, x : x + 11]
        theirs = padded_truth[image, channel, y : y + 11, x : x + 11]
        mean_ours, mean_theirs = (window * ours).sum(), (window * theirs).sum()
        variance_ours = (window * (ours - mean_ours) ** 2).sum()
        variance_theirs = (window * (theirs - mean_theirs) ** 2).sum()
        covariance = (window * (ours - mean_ours) * (theirs - mean_theirs)).sum()
        c1, c2 = 0.01**2, 0.03**2
        result[index] = ((2 * mean_ours * mean_theirs + c1) * (2 * covariance + c2)) / (
            (mean_ours**2 + mean_theirs**2 + c1) * (variance_ours + variance_theirs + c2)
        )
    return result


def half_mask(*shape: int) -> Tensor:
    mask = torch.zeros(*shape)
    mask[..., : shape[-1] // 2] = 1.0
    return mask


def test_ssim_equals_its_plain_twin() -> None:
    generator = torch.Generator().manual_seed(0)
    images, truth = torch.rand(2, 1, 1, 12, 13, dtype=torch.float64, generator=generator)
    expected = torch.from_numpy(plain_ssim(images.numpy(), truth.numpy()))
    torch.testing.assert_close(ssim_map(images, truth), expected, rtol=1e-10, atol=1e-12)


def test_ssim_of_equal_and_of_flat_images() -> None:
    images = torch.rand(1, 3, 16, 16, dtype=torch.float64)
    torch.testing.assert_close(ssim_map(images, images), torch.ones_like(images))
    dark, light = torch.full((1, 1, 16, 16), 0.2), torch.full((1, 1, 16, 16), 0.6)
    by_hand = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    torch.testing.assert_close(ssim_map(dark, light), torch.full((1, 1, 16, 16), by_hand), rtol=1e-3, atol=0)


def test_psnr_by_hand_whole_and_masked() -> None:
    truth = torch.zeros(2, 3, 4, 8)
    mask = half_mask(2, 1, 4, 8)
    images = truth + 0.1 * mask  # an error of 0.1 in half of the image
    torch.testing.assert_close(psnr_db(images, truth, mask), torch.full((2,), 20.0, dtype=torch.float64))
    whole = psnr_db(images, truth, torch.ones_like(mask))
    torch.testing.assert_close(whole, torch.full((2,), 20.0 + 10 * np.log10(2), dtype=torch.float64))


def test_a_perfect_image_has_100_db() -> None:
    truth = torch.rand(1, 3, 4, 4)
    assert psnr_db(truth, truth, torch.ones(1, 1, 4, 4)).tolist() == [100.0]


def test_a_nan_pixel_is_no_figure() -> None:
    """A masked mean must not hide it, and what lies outside the mask must not reach it."""
    truth, mask = torch.zeros(1, 1, 4, 8), half_mask(1, 1, 4, 8)
    inside, outside = truth.clone(), truth.clone()
    inside[..., 0] = torch.nan
    outside[..., -1] = torch.nan
    assert psnr_db(inside, truth, mask).isnan().all()
    assert masked_mean(outside, mask).tolist() == [0.0]
    assert psnr_db(outside, truth, torch.ones_like(mask)).isnan().all()


def test_masked_mean_is_over_channels_and_chosen_pixels() -> None:
    values = torch.arange(12.0).view(1, 2, 2, 3)
    mask = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
    assert masked_mean(values, mask).tolist() == [pytest.approx((0 + 5 + 6 + 11) / 4)]
