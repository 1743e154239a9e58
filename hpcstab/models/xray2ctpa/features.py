"""Frozen networks with a fixed draw of weights: nothing is downloaded, nothing is trained.

They stand where the write-up has RadImageNet's ResNet50 (perceptual term) and BiomedCLIP (condition): no measure of
what people see, but of the form, the cost and the number format of those.
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

_FEATURE_CHANNELS, _FEATURE_SEED = (3, 8, 16, 32), 0
_IMAGE_CHANNELS, _IMAGE_SEED, _IMAGE_GRID = (1, 8, 16), 1, 8


class FrozenFeatures(nn.Module):
    """Forward: images (B, 3, H, W) -> three maps (B, 8, H, W), (B, 16, H/2, W/2), (B, 32, H/4, W/4)."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = _frozen_layers(_FEATURE_CHANNELS, torch.Generator().manual_seed(_FEATURE_SEED))

    def forward(self, images: Tensor) -> list[Tensor]:
        maps = [images]
        for layer in self.layers:
            maps.append(functional.relu(layer(maps[-1])))
        return maps[1:]


class ImageEncoder(nn.Module):
    """The code of an X-ray: (B, 1, S, S) in [0, 1] -> (B, ``size``) of length 1."""

    def __init__(self, size: int) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(_IMAGE_SEED)
        self.layers = _frozen_layers(_IMAGE_CHANNELS, generator)
        width = _IMAGE_CHANNELS[-1] * _IMAGE_GRID**2
        self.output = nn.Linear(width, size, bias=False)
        nn.init.normal_(self.output.weight, std=width**-0.5, generator=generator)
        self.requires_grad_(False)

    def forward(self, xrays: Tensor) -> Tensor:
        values = functional.interpolate(xrays, size=(4 * _IMAGE_GRID,) * 2, mode="bilinear", antialias=True) - 0.5
        for layer in self.layers:
            values = functional.leaky_relu(layer(values), 0.2)
        return functional.normalize(self.output(functional.adaptive_avg_pool2d(values, _IMAGE_GRID).flatten(1)))


def _frozen_layers(channels: tuple[int, ...], generator: torch.Generator) -> nn.ModuleList:
    """3x3 convolutions; each but the first halves the edge."""
    layers = nn.ModuleList()
    for index, (num_in, num_out) in enumerate(pairwise(channels)):
        layer = nn.Conv2d(num_in, num_out, 3, stride=1 if index == 0 else 2, padding=1, bias=False)
        nn.init.kaiming_normal_(layer.weight, generator=generator)
        layers.append(layer)
    return layers.requires_grad_(False)
