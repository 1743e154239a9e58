"""Loss terms of the diffusion, and the write-up's guards around them. B = samples; latents (B, C, d, d, d).

All reductions are means over samples, so that ranks that share a batch agree with one that has it whole.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from hpcstab.models.xray2ctpa.features import FrozenFeatures
from hpcstab.stability.numerics import at_least_fp32

_ROOT_EPS = 1e-12  # equal images have a gradient of 0, not 0 / 0
NUM_IMAGE_CHANNELS = 3  # what an image network reads
_SD_LOW, _SD_HIGH, _SD_FACTOR = -12.91, 9.60, 0.18215
"""Of another autoencoder's latents; the write-up's program applies them to its own before the image network."""


def distances(predicted: Tensor, target: Tensor, kind: Literal["l1", "l2"]) -> Tensor:
    """Mean absolute (``l1``) or squared (``l2``) difference of each sample, (B,)."""
    difference = at_least_fp32(predicted) - target
    return (difference.abs() if kind == "l1" else difference.square()).flatten(1).mean(1)


def as_image_latents(latents: Tensor) -> Tensor:
    """Latents in [-1, 1] as the write-up's program hands them to its image network: times 61.8, and shifted.

    It undoes the normalisation of another autoencoder, so that 1 becomes 52.7 and -1 becomes -70.9.
    """
    low, high = _SD_LOW / _SD_FACTOR, _SD_HIGH / _SD_FACTOR
    return (latents + 1.0) * ((high - low) / 2.0) + low


def slices(volumes: Tensor, numbers: Tensor) -> Tensor:
    """One slice of each volume (B, C, d, d, d) as an image of three channels (B, 3, d, d).

    Of more than three channels the first three, one channel three times. ``numbers``: (B,) int64.
    """
    index = numbers.reshape(-1, 1, 1, 1, 1).expand(-1, *volumes.shape[1:4], 1)
    images = volumes.gather(4, index)[..., 0]
    return images.expand(-1, NUM_IMAGE_CHANNELS, -1, -1) if images.shape[1] == 1 else images[:, :NUM_IMAGE_CHANNELS]


def perceptual_distances(rebuilt: Tensor, truth: Tensor, features: FrozenFeatures) -> Tensor:
    """Root of the mean squared difference of frozen features of each image, mean over their layers, (B,).

    A mean absolute difference would hide an overflow from the gradient: torch's sign of NaN is 0.
    """
    pairs = zip(features(rebuilt), features(truth), strict=True)
    squared = [at_least_fp32(ours - theirs).square().flatten(1).mean(1) for ours, theirs in pairs]
    return (torch.stack(squared) + _ROOT_EPS).sqrt().mean(0)


def only_where(kept: Tensor, values: Tensor, otherwise: Tensor) -> Tensor:
    """``values`` (B, ...) of the samples that are ``kept`` (B,), ``otherwise`` of the others, which get no gradient."""
    return torch.where(kept.reshape(-1, *[1] * (values.ndim - 1)), values, otherwise)


def replace_nonfinite(values: Tensor) -> tuple[Tensor, Tensor]:
    """(values with NaN as 0, infinities as 1 and -1; how many there were), as the write-up guards its inputs."""
    return values.nan_to_num(nan=0.0, posinf=1.0, neginf=-1.0), (~values.isfinite()).sum()


def clamped(values: Tensor, bound: float) -> tuple[Tensor, Tensor]:
    """(values cut at +-bound, how many were cut)."""
    return values.clamp(-bound, bound), (values.abs() > bound).sum()
