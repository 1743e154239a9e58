"""PSNR and SSIM in two and three dimensions: plain twins in float64, MONAI, and images whose figures are known."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from monai.metrics.regression import compute_ssim_and_cs
from scipy.ndimage import correlate
from torch import Tensor

from hpcstab.errors import DataError
from hpcstab.quality import box_window, gaussian_window, masked_mean, psnr_db, ssim, ssim_map

SHAPES = [(2, 3, 13, 12), (2, 1, 12, 13, 14)]
Array = np.ndarray  # type: ignore[type-arg]


def pair(*shape: int, data_range: float = 1.0) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(0)
    truth = torch.rand(*shape, dtype=torch.float64, generator=generator)
    noise = 0.2 * torch.randn(*shape, dtype=torch.float64, generator=generator)
    return data_range * (truth + noise), data_range * truth


def plain_window(num_axes: int, line: Array | None = None) -> Array:
    offsets = np.arange(-5, 6)
    line = np.exp(-(offsets**2) / (2 * 1.5**2)) if line is None else line
    window = line / line.sum()
    for _ in range(num_axes - 1):
        window = np.multiply.outer(window, line / line.sum())
    return np.asarray(window)


def plain_ssim(images: Array, truth: Array, data_range: float = 1.0, window: Array | None = None) -> Array:
    """Wang et al. 2004 at every pixel, images reflected at their edges: a dense window, channel by channel."""
    window = plain_window(images.ndim - 2) if window is None else window
    result = np.empty_like(images)
    c1, c2 = (0.01 * data_range) ** 2, (0.03 * data_range) ** 2

    def mean(values: Array) -> Array:
        return np.asarray(correlate(values, window, mode="mirror"))

    for index in np.ndindex(images.shape[:2]):
        x, y = images[index], truth[index]
        mean_x, mean_y = mean(x), mean(y)
        variances = mean(x**2) - mean_x**2 + mean(y**2) - mean_y**2
        covariance = mean(x * y) - mean_x * mean_y
        result[index] = (2 * mean_x * mean_y + c1) * (2 * covariance + c2)
        result[index] /= (mean_x**2 + mean_y**2 + c1) * (variances + c2)
    return result


def inside(values: Array) -> Array:
    """What windows that lie wholly inside see."""
    return np.asarray(values[(..., *[slice(5, -5)] * (values.ndim - 2))])


@pytest.mark.parametrize("data_range", [1.0, 2.0])
@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_its_plain_twin(shape: tuple[int, ...], data_range: float) -> None:
    images, truth = pair(*shape, data_range=data_range)
    expected = plain_ssim(images.numpy(), truth.numpy(), data_range)
    np.testing.assert_allclose(ssim_map(images, truth, data_range).numpy(), expected, rtol=1e-9, atol=1e-12)
    means = inside(expected).reshape(len(images), -1).mean(1)
    np.testing.assert_allclose(ssim(images, truth, data_range=data_range).numpy(), means, rtol=1e-9)
    single = ssim(images.float(), truth.float(), data_range=data_range)
    assert single.dtype == torch.float32
    np.testing.assert_allclose(single.numpy(), means, atol=1e-5)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_equals_that_of_monai(shape: tuple[int, ...]) -> None:
    images, truth = pair(*shape)
    num_axes = len(shape) - 2
    theirs, _ = compute_ssim_and_cs(
        images, truth, num_axes, kernel_size=(11,) * num_axes, kernel_sigma=(1.5,) * num_axes, data_range=1.0
    )
    torch.testing.assert_close(ssim(images, truth), theirs.flatten(1).mean(1).double(), rtol=0, atol=1e-6)


def test_the_box_window_is_eleven_equal_weights() -> None:
    images, truth = pair(1, 1, 14, 15)
    plain = inside(plain_ssim(images.numpy(), truth.numpy(), window=plain_window(2, np.ones(11))))
    assert float(ssim(images, truth, box_window())) == pytest.approx(plain.mean(), rel=1e-9)
    assert float(ssim(images, truth, gaussian_window())) == float(ssim(images, truth))
    assert float(ssim(images, truth, box_window())) != pytest.approx(float(ssim(images, truth)), rel=1e-3)


@pytest.mark.parametrize("shape", SHAPES)
def test_ssim_of_equal_inverted_and_flat_images(shape: tuple[int, ...]) -> None:
    _, truth = pair(*shape)
    torch.testing.assert_close(ssim_map(truth, truth), torch.ones(shape, dtype=torch.float64))
    assert (ssim(1.0 - truth, truth) < 0).all()
    by_hand = (2 * 0.2 * 0.6 + 1e-4) / (0.2**2 + 0.6**2 + 1e-4)
    assert ssim(torch.full(shape, 0.2), torch.full(shape, 0.6)).tolist() == pytest.approx([by_hand] * 2, rel=1e-3)


@pytest.mark.parametrize("measure", [ssim, ssim_map])
@pytest.mark.parametrize("shape", [(1, 1, 11, 12), (1, 1, 11, 11, 11)])
def test_gradients_of_ssim(measure: Callable[[Tensor, Tensor], Tensor], shape: tuple[int, ...]) -> None:
    images, truth = pair(*shape)
    assert torch.autograd.gradcheck(lambda x: measure(x, truth), (images.requires_grad_(),), fast_mode=True)


def test_ssim_is_fp32_inside_autocast_and_for_half_precision() -> None:
    images, truth = (each.float() for each in pair(1, 3, 16, 16))
    expected = ssim(images, truth)
    with torch.autocast("cpu", torch.bfloat16):
        assert torch.equal(ssim(images, truth), expected)
        assert ssim_map(images.bfloat16(), truth.bfloat16()).dtype == torch.float32


@pytest.mark.parametrize(("measure", "needed"), [(ssim, 11), (ssim_map, 6)])
def test_images_below_the_window_are_refused(measure: Callable[[Tensor, Tensor], Tensor], needed: int) -> None:
    fits, small = torch.rand(1, 1, 16, needed), torch.rand(1, 1, 16, needed - 1)
    assert measure(fits, fits).isfinite().all()
    with pytest.raises(DataError, match=rf"SSIM of images \(16, {needed - 1}\): each axis needs at least {needed}"):
        measure(small, small)


def half_mask(*shape: int) -> Tensor:
    mask = torch.zeros(*shape)
    mask[..., : shape[-1] // 2] = 1.0
    return mask


@pytest.mark.parametrize("axes", [(4, 8), (2, 4, 8)])
def test_psnr_by_hand_whole_and_masked(axes: tuple[int, ...]) -> None:
    truth = torch.zeros(2, 3, *axes)
    mask = half_mask(2, 1, *axes)
    images = truth + 0.1 * mask  # an error of 0.1 in half of the image
    assert psnr_db(images, truth, mask).tolist() == pytest.approx([20.0, 20.0])
    assert psnr_db(images, truth).tolist() == pytest.approx([20.0 + 10 * np.log10(2)] * 2)
    assert psnr_db(images, truth, data_range=2.0).tolist() == pytest.approx([20.0 + 10 * np.log10(8)] * 2)
    assert psnr_db(images, truth, torch.ones_like(mask)).tolist() == psnr_db(images, truth).tolist()


def test_a_perfect_image_has_100_db() -> None:
    truth = torch.rand(1, 3, 4, 4)
    assert psnr_db(truth, truth).tolist() == [100.0]


def test_a_nan_pixel_is_no_figure() -> None:
    """A masked mean must not hide it, and what lies outside the mask must not reach it."""
    truth, mask = torch.zeros(1, 1, 4, 8), half_mask(1, 1, 4, 8)
    within, outside = truth.clone(), truth.clone()
    within[..., 0] = torch.nan
    outside[..., -1] = torch.nan
    assert psnr_db(within, truth, mask).isnan().all()
    assert masked_mean(outside, mask).tolist() == [0.0]
    assert psnr_db(outside, truth).isnan().all()
    image = torch.rand(1, 1, 16, 16)
    image[0, 0, 8, 8] = torch.nan
    assert ssim(image, image).isnan().all()


def test_masked_mean_is_over_channels_and_chosen_pixels() -> None:
    values = torch.arange(12.0).view(1, 2, 2, 3)
    mask = torch.tensor([[[[1.0, 0.0, 0.0], [0.0, 0.0, 1.0]]]])
    assert masked_mean(values, mask).tolist() == [pytest.approx((0 + 5 + 6 + 11) / 4)]
