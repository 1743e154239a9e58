"""The denoising U-Net: residual blocks that a step t and a condition scale and shift, attention at the deepest level.

Written here: MONAI's DiffusionModelUNet takes a condition by cross-attention or as a class alone, and its middle block
needs einops. Source: Ho et al. (2020), Dhariwal and Nichol (2021).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.xray2ctpa.blocks import ResidualBlock, SelfAttention, conv, group_norm, sinusoids

_PER_CHANNEL = 4  # size of the embedding for each channel of the first level


class DenoisingUNet(nn.Module):
    """Forward: noisy latents (B, C, d, d, d), t (B,) in 0..1000, condition (B, E), places (B, 3, d, d, d) or None.

    Returns (B, C, d, d, d). ``num_places``: 3 where the place of each voxel is given, as further channels of the input
    (Wang et al., "Patch Diffusion", 2023), else 0.
    """

    def __init__(
        self,
        latent_channels: int,
        channels: tuple[int, ...],
        condition_size: int,
        *,
        num_places: int,
        attention: bool,
    ) -> None:
        super().__init__()
        first, *_, deepest = (*channels, channels[-1])
        size = _PER_CHANNEL * first
        self._num_sinusoids = size
        self.embed_time = nn.Sequential(nn.Linear(size, size), nn.SiLU(), nn.Linear(size, size))
        self.embed_condition = nn.Sequential(nn.Linear(condition_size, size), nn.SiLU(), nn.Linear(size, size))
        self.input = conv(latent_channels + num_places, first)
        self.encoder = nn.ModuleList(ResidualBlock(width, width, size) for width in channels)
        self.down = nn.ModuleList(conv(narrow, wide, stride=2) for narrow, wide in pairwise(channels))
        self.middle = nn.ModuleList([ResidualBlock(deepest, deepest, size)])
        self.attention = SelfAttention(deepest) if attention else nn.Identity()
        self.decoder = nn.ModuleList(ResidualBlock(2 * width, width, size) for width in reversed(channels))
        self.up = nn.ModuleList(conv(wide, narrow) for narrow, wide in reversed(list(pairwise(channels))))
        last = conv(first, latent_channels)
        self.output = nn.Sequential(group_norm(first), nn.SiLU(), last)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)

    def forward(self, noisy: Tensor, time: Tensor, condition: Tensor, places: Tensor | None) -> Tensor:
        embedding = self.embed_time(sinusoids(time, self._num_sinusoids)) + self.embed_condition(condition)
        embedding = functional.silu(embedding)
        values = self.input(noisy if places is None else torch.cat([noisy, places.to(noisy.dtype)], dim=1))
        skips = []
        for index, block in enumerate(self.encoder):
            values = block(values, embedding)
            skips.append(values)
            if index < len(self.down):
                values = self.down[index](values)
        values = self.attention(self.middle[0](values, embedding))
        for index, block in enumerate(self.decoder):
            values = block(torch.cat([values, skips.pop()], dim=1), embedding)
            if index < len(self.up):
                values = self.up[index](functional.interpolate(values, scale_factor=2.0, mode="nearest"))
        predicted: Tensor = self.output(values)
        return predicted
