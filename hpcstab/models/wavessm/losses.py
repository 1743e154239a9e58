"""The loss terms of WaveSSM-X; each a scalar of restored and true images (B, 3, H, W) in [0, 1]."""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.wavessm.wavelet import haar_transform
from hpcstab.quality import ssim_map

_LOW_WEIGHT, _HIGH_WEIGHT = 1.0, 1.5  # of the write-up's wavelet term
_FEATURE_CHANNELS = (3, 8, 16, 32)
_FEATURE_SEED = 0  # of the frozen features: one network for all runs


def l1(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error."""
    return (restored - truth).abs().mean()


def structural_dissimilarity(restored: Tensor, truth: Tensor) -> Tensor:
    """1 - mean SSIM, in [0, 2]; not clamped, so that a patch of negative correlation has a gradient too."""
    return 1.0 - ssim_map(restored, truth).mean()


def sobel_l1(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the gradients along x and y, in units of value a pixel."""
    kernel = restored.new_tensor([[-1.0, 0.0, 1.0], [-2.0, 0.0, 2.0], [-1.0, 0.0, 1.0]]) / 8
    channels = restored.shape[1]
    kernels = torch.stack([kernel, kernel.T])[:, None].repeat(channels, 1, 1, 1)
    return functional.conv2d(restored - truth, kernels, groups=channels).abs().mean()


def wavelet_l1(restored: Tensor, truth: Tensor) -> Tensor:
    """Mean absolute error of the Haar bands: the low one with weight 1, the mean of the three high ones with 1.5."""
    low, *high = haar_transform(restored - truth)
    return _LOW_WEIGHT * low.abs().mean() + _HIGH_WEIGHT * torch.stack(high).abs().mean()


class FrozenFeatures(nn.Module):
    """A seeded random convolutional network in the place of VGG19: nothing is downloaded, nothing is trained.

    Random filters of a fixed draw see edges and textures at three sizes; distances in them are no measure of what
    people see, but have the form, the cost and the number format of a perceptual loss.

    Forward: (B, 3, H, W) -> three maps (B, 8, H, W), (B, 16, H/2, W/2), (B, 32, H/4, W/4).
    """

    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_FEATURE_SEED)
        self.layers = nn.ModuleList()
        for index, (num_in, num_out) in enumerate(pairwise(_FEATURE_CHANNELS)):
            layer = nn.Conv2d(num_in, num_out, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
            nn.init.kaiming_normal_(layer.weight, generator=generator)
            self.layers.append(layer)
        self.requires_grad_(False)

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(functional.relu(layer(maps[-1])))
        return maps[1:]


def perceptual_l1(restored: Tensor, truth: Tensor, features: FrozenFeatures) -> Tensor:
    """Mean absolute difference of frozen features, mean over their layers."""
    pairs = zip(features(restored), features(truth), strict=True)
    return torch.stack([(ours - theirs).abs().mean() for ours, theirs in pairs]).mean()
