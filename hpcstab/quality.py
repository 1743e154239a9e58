"""How near an image is to the true one: PSNR and SSIM, of the whole image and of a masked region.

Images are (B, C, H, W) or volumes (B, C, D, H, W), below (B, C, ...); ``data_range`` is the distance between the
smallest and the largest value that they may have, 1 for values in [0, 1]. Everything is computed in fp32 at least,
whatever the precision around it: variances here are differences of near equal numbers.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from hpcstab.errors import DataError
from hpcstab.stability.numerics import at_least_fp32, fp32_island

_WINDOW = 11  # pixels or voxels
_SIGMA = 1.5
_K1, _K2 = 0.01, 0.03
_HIGHEST_DB = 100.0  # a perfect image has a finite PSNR


def psnr_db(images: Tensor, truth: Tensor, mask: Tensor | None = None, data_range: float = 1.0) -> Tensor:
    """Peak signal-to-noise ratio of each image, ``10 log10(data_range^2 / MSE)``, at most 100 dB.

    Args:
        images: (B, C, ...).
        truth: as ``images``.
        mask: (B, 1, ...), not 0 where an error counts, in one place an image at least; None: everywhere.

    Returns:
        (B,) in dB, float64. NaN where a value that counts is NaN.
    """
    squared = (images.double() - truth.double()).square()
    mse = squared.flatten(1).mean(1) if mask is None else masked_mean(squared, mask)
    return -10.0 * (mse / data_range**2).clamp(min=10.0 ** (-_HIGHEST_DB / 10.0)).log10()


def masked_mean(values: Tensor, mask: Tensor) -> Tensor:
    """Mean of (B, C, ...) over channels and the places of a mask (B, 1, ...) that are not 0; (B,)."""
    chosen = mask != 0
    total = torch.where(chosen, values, 0.0).flatten(1).sum(1)
    return total / (chosen.flatten(1).sum(1) * values.shape[1])


def ssim(images: Tensor, truth: Tensor, window: Tensor | None = None, data_range: float = 1.0) -> Tensor:
    """Structural similarity of each pair of images (B, C, ...), mean over channels and windows; (B,), in [-1, 1].

    Over windows that lie wholly inside, as in the authors' code. K1 = 0.01, K2 = 0.03.
    Source: Wang et al., "Image Quality Assessment: From Error Visibility to Structural Similarity" (2004).

    Args:
        window: weights along one axis, summing up to 1; the window is their outer product. None: the published one.

    Raises:
        DataError: an axis of the images is shorter than the window.
    """
    return _similarity(images, truth, window, data_range, inside=True).flatten(1).mean(1)


def ssim_map(images: Tensor, truth: Tensor, data_range: float = 1.0) -> Tensor:
    """Structural similarity at each pixel, (B, C, ...) like the images, in [-1, 1]: a mask of any place has one.

    With the published window; what it would see beyond an edge is the image reflected at it.

    Raises:
        DataError: an axis of the images has not more than half a window.
    """
    return _similarity(images, truth, None, data_range, inside=False)


def gaussian_window(device: torch.device | None = None) -> Tensor:
    """The 11 weights of the published window: a Gaussian of 1.5 pixels."""
    offsets = torch.arange(_WINDOW, dtype=torch.float64, device=device) - _WINDOW // 2
    weights = torch.exp(-0.5 * (offsets / _SIGMA).square())
    return weights / weights.sum()


def box_window(device: torch.device | None = None) -> Tensor:
    """11 equal weights."""
    return torch.full((_WINDOW,), 1.0 / _WINDOW, dtype=torch.float64, device=device)


@fp32_island
def _similarity(images: Tensor, truth: Tensor, window: Tensor | None, data_range: float, inside: bool) -> Tensor:
    images, truth = at_least_fp32(images), at_least_fp32(truth)
    weights = gaussian_window(images.device) if window is None else window
    reach = len(weights) // 2
    shortest, needed = min(images.shape[2:]), len(weights) if inside else reach + 1
    if shortest < needed:
        raise DataError(f"SSIM of images {tuple(images.shape[2:])}: each axis needs at least {needed} pixels")
    if not inside:
        edges = [reach] * (2 * (images.dim() - 2))
        images, truth = (functional.pad(each, edges, mode="reflect") for each in (images, truth))
    maps = torch.cat([images, truth, images.square(), truth.square(), images * truth])
    mean_1, mean_2, square_1, square_2, product = _local_means(maps, weights.to(images.dtype)).chunk(5)
    c1, c2 = (_K1 * data_range) ** 2, (_K2 * data_range) ** 2
    variances = square_1 - mean_1.square() + square_2 - mean_2.square()
    luminance = (2.0 * mean_1 * mean_2 + c1) / (mean_1.square() + mean_2.square() + c1)
    return luminance * (2.0 * (product - mean_1 * mean_2) + c2) / (variances + c2)


def _local_means(values: Tensor, weights: Tensor) -> Tensor:
    """Weighted means over the windows inside (B, C, ...): one axis after the other, each shorter by a window - 1.

    As products with banded matrices: on a CPU ten times as fast as convolutions of one channel, in any dimension.
    """
    for _ in range(values.dim() - 2):
        places = torch.eye(values.shape[2], dtype=values.dtype, device=values.device).unfold(0, len(weights), 1)
        values = torch.tensordot(values, places @ weights, dims=([2], [1]))  # the next axis moves to its place
    return values
