"""A plain U-Net of the same size: what WaveSSM-X is measured against."""

from __future__ import annotations

from itertools import count, pairwise

import torch
from torch import Tensor, nn


class PlainUNet(nn.Module):
    """Two convolutions a level, max pooling, concatenated skips, the input added at the end.

    Source: Ronneberger et al., "U-Net" (MICCAI 2015), with GroupNorm(1, C) as in the blocks of WaveSSM-X.

    Args:
        width: channels of the first level; each level has twice as many as the one above.
        num_levels: >= 1.
        starts_as_identity: the last convolution starts at zero, so that images leave as they came.

    Forward: (B, 3, H, W), H and W multiples of `2 ** (num_levels - 1)` -> (B, 3, H, W).
    """

    def __init__(self, width: int, num_levels: int, starts_as_identity: bool) -> None:
        super().__init__()
        widths = [width * 2**level for level in range(num_levels)]
        self.encoder = nn.ModuleList(_double_convolution(*pair) for pair in pairwise([3, *widths]))
        self.pool = nn.MaxPool2d(2)
        deep_to_wide = list(reversed(list(pairwise(widths))))
        self.up = nn.ModuleList(nn.ConvTranspose2d(deep, wide, 2, stride=2) for wide, deep in deep_to_wide)
        self.decoder = nn.ModuleList(_double_convolution(2 * wide, wide) for wide, _ in deep_to_wide)
        self.output = nn.Conv2d(width, 3, 1, bias=False)
        if starts_as_identity:
            nn.init.zeros_(self.output.weight)

    def forward(self, images: Tensor) -> Tensor:
        features, skips = images, []
        for index, level in enumerate(self.encoder):
            features = level(self.pool(features) if index else features)
            skips.append(features)
        skips.pop()
        for up, level in zip(self.up, self.decoder, strict=True):
            features = level(torch.cat([up(features), skips.pop()], dim=1))
        restored: Tensor = self.output(features) + images
        return restored


def unet_of_size(num_parameters: int, num_levels: int, starts_as_identity: bool) -> PlainUNet:
    """The U-Net whose number of parameters comes nearest to `num_parameters`."""
    sizes: dict[int, int] = {}
    with torch.device("meta"):
        for width in count(1):
            sizes[width] = num_parameters_of(PlainUNet(width, num_levels, starts_as_identity))
            if sizes[width] >= num_parameters:
                break
    return PlainUNet(min(sizes, key=lambda width: abs(sizes[width] - num_parameters)), num_levels, starts_as_identity)


def num_parameters_of(network: nn.Module) -> int:
    """How many numbers are trained."""
    return sum(parameter.numel() for parameter in network.parameters())


def _double_convolution(num_in: int, num_out: int) -> nn.Sequential:
    layers: list[nn.Module] = []
    for channels in (num_in, num_out):
        layers += [nn.Conv2d(channels, num_out, 3, padding=1, bias=False), nn.GroupNorm(1, num_out), nn.ReLU()]
    return nn.Sequential(*layers)
