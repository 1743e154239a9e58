"""How near a restored image is to the true one: PSNR and SSIM, of the whole image and of the masked region.

B = images, C = channels, H x W = pixels; values in [0, 1].
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

_WINDOW, _SIGMA = 11, 1.5  # pixels
_STABILIZERS = (0.01**2, 0.03**2)  # for a range of 1
_SMALLEST_MSE = 1e-10  # 100 dB: a perfect image has a finite PSNR


def psnr_db(images: Tensor, truth: Tensor, mask: Tensor) -> Tensor:
    """Peak signal-to-noise ratio over the masked pixels of each image, peak 1, at most 100 dB.

    images, truth (B, C, H, W); mask (B, 1, H, W), at least one pixel an image. Returns dB (B,), float64.
    """
    mse = masked_mean((images - truth).double().square(), mask)
    return -10.0 * mse.clamp(min=_SMALLEST_MSE).log10()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, H, W) over channels and the pixels of a mask (B, 1, H, W) that are not 0; (B,)."""
    chosen = mask != 0
    total = torch.where(chosen, values, 0.0).sum((1, 2, 3))
    return total / (chosen.sum((1, 2, 3)) * values.shape[1])


def ssim_map(images: Tensor, truth: Tensor) -> Tensor:
    """Structural similarity at each pixel, in [-1, 1]: (B, C, H, W) twice, H and W > 5 -> (B, C, H, W).

    Window 11 x 11, Gaussian of sigma 1.5 pixels, K = 0.01 and 0.03, range 1; edges are reflected, so that masks of
    any place have a value.
    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).
    """
    mean_image, mean_truth = _blurred(images), _blurred(truth)
    covariance = _blurred(images * truth) - mean_image * mean_truth
    variances = _blurred(images.square()) - mean_image.square() + _blurred(truth.square()) - mean_truth.square()
    for_means, for_variances = _STABILIZERS
    luminance = (2 * mean_image * mean_truth + for_means) / (mean_image.square() + mean_truth.square() + for_means)
    return luminance * (2 * covariance + for_variances) / (variances + for_variances)


def _blurred(values: Tensor) -> Tensor:
    """Gaussian-weighted local means, (B, C, H, W) -> (B, C, H, W)."""
    offsets = torch.arange(_WINDOW, dtype=values.dtype, device=values.device) - _WINDOW // 2
    window = (-offsets.square() / (2 * _SIGMA**2)).exp()
    window = (window / window.sum()).expand(values.shape[1], 1, 1, -1)
    padded = functional.pad(values, [_WINDOW // 2] * 4, mode="reflect")
    rows = functional.conv2d(padded, window, groups=values.shape[1])
    return functional.conv2d(rows, window.transpose(2, 3), groups=values.shape[1])
