"""The Haar wavelet transform of images: one level, orthonormal, no padding."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor


class Bands(NamedTuple):
    """The four bands of an image (B, C, H, W), each (B, C, H/2, W/2).

    ``low``: mean of 2 x 2 pixels, times 2. ``horizontal``, ``vertical``, ``diagonal``: their differences along x,
    along y and along both.
    """

    low: Tensor
    horizontal: Tensor
    vertical: Tensor
    diagonal: Tensor


def haar_transform(images: Tensor) -> Bands:
    """(B, C, H, W) with even H and W -> its four bands; the sum of squares stays what it was.

    Source: Haar 1910, in the orthonormal form of Mallat, "A Wavelet Tour of Signal Processing".
    """
    left, right = images[..., ::2], images[..., 1::2]
    sums, differences = left + right, left - right
    upper, lower = sums[..., ::2, :], sums[..., 1::2, :]
    upper_difference, lower_difference = differences[..., ::2, :], differences[..., 1::2, :]
    return Bands(
        (upper + lower) / 2,
        (upper_difference + lower_difference) / 2,
        (upper - lower) / 2,
        (upper_difference - lower_difference) / 2,
    )


def inverse_haar_transform(bands: Bands) -> Tensor:
    """The images (B, C, H, W) of four bands (B, C, H/2, W/2): the exact inverse of `haar_transform`."""
    low, horizontal, vertical, diagonal = bands
    upper = _interleaved(low + vertical, horizontal + diagonal)
    lower = _interleaved(low - vertical, horizontal - diagonal)
    return torch.stack([upper, lower], dim=-2).flatten(-3, -2)


def _interleaved(sums: Tensor, differences: Tensor) -> Tensor:
    """Pixels (..., W) along x from half their sums and differences (..., W/2)."""
    return torch.stack([sums + differences, sums - differences], dim=-1).flatten(-2) / 2
