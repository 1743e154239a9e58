"""Stage 1: a 3D autoencoder whose latents are entries of a codebook.

Source: van den Oord et al., "Neural Discrete Representation Learning" (2017); codebook by moving averages, entries that
are not used begin anew, as in the 3D VQ-GAN of Khader et al., "Denoising diffusion probabilistic models for 3D medical
image generation" (2023).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.xray2ctpa.blocks import ResidualBlock, conv, group_norm
from hpcstab.stability.numerics import at_least_fp32, fp32_island

_DECAY = 0.99
_MIN_USE = 1.0  # vectors a batch, as a moving average; below it an entry begins anew
_SMALLEST_COUNT = 1e-5


class Codebook(nn.Module):
    """``num_codes`` vectors of ``size`` numbers. They learn in training mode, from the forward pass, until frozen.

    Forward: (B, size, d, d, d) -> the nearest entries, with the gradient of the input.
    """

    entries: Tensor
    counts: Tensor
    sums: Tensor

    def __init__(self, num_codes: int, size: int) -> None:
        super().__init__()
        entries = torch.randn(num_codes, size)
        self.register_buffer("entries", entries)
        self.register_buffer("counts", torch.ones(num_codes))
        self.register_buffer("sums", entries.clone())
        self.learns = True

    def forward(self, latents: Tensor) -> Tensor:
        nearest = self.nearest(latents)
        return latents + (nearest - latents).detach()

    def nearest(self, latents: Tensor) -> Tensor:
        """(B, size, d, d, d) -> the entries nearest to them, without a gradient."""
        with torch.no_grad():
            vectors = latents.to(self.entries.dtype).movedim(1, -1).reshape(-1, self.entries.shape[1])
            indices = torch.cdist(vectors, self.entries).argmin(1)
            chosen = self.entries[indices]
            if self.training and self.learns:
                self._learn(vectors, indices)
            return chosen.reshape(latents.movedim(1, -1).shape).movedim(-1, 1).to(latents.dtype)

    def _learn(self, vectors: Tensor, indices: Tensor) -> None:
        hits = functional.one_hot(indices, len(self.counts)).to(vectors.dtype)
        self.counts.lerp_(hits.sum(0), 1 - _DECAY)
        self.sums.lerp_(hits.T @ vectors, 1 - _DECAY)
        unused = self.counts < _MIN_USE
        others = vectors[torch.randint(len(vectors), (len(self.counts),), device=vectors.device)]
        self.sums.copy_(torch.where(unused[:, None], others, self.sums))
        self.counts.copy_(torch.where(unused, torch.ones_like(self.counts), self.counts))
        self.entries.copy_(self.sums / self.counts.clamp(min=_SMALLEST_COUNT)[:, None])


class VectorQuantizedAutoencoder(nn.Module):
    """1 -> channels -> latent channels at an edge halved by each of the channels but the first, and its mirror.

    Forward: (B, 1, p, p, p) in [0, 1] -> (reconstruction, unbounded; latents before the codebook).
    """

    def __init__(self, channels: tuple[int, ...], num_codes: int, latent_channels: int) -> None:
        super().__init__()
        first, *_, last = channels
        down: list[nn.Module] = [conv(1, first)]
        for narrow, wide in pairwise(channels):
            down += [nn.Conv3d(narrow, wide, 4, stride=2, padding=1), ResidualBlock(wide, wide)]
        self.encoder = nn.Sequential(*down, group_norm(last), nn.SiLU(), nn.Conv3d(last, latent_channels, 1))
        self.codebook = Codebook(num_codes, latent_channels)
        up: list[nn.Module] = [nn.Conv3d(latent_channels, last, 1)]
        for narrow, wide in reversed(list(pairwise(channels))):
            up += [ResidualBlock(wide, wide), nn.ConvTranspose3d(wide, narrow, 4, stride=2, padding=1)]
        self.decoder = nn.Sequential(*up, group_norm(first), nn.SiLU(), conv(first, 1))

    def encode(self, volumes: Tensor) -> Tensor:
        """(B, 1, p, p, p) -> latents before the codebook (B, C, d, d, d)."""
        latents: Tensor = self.encoder(volumes)
        return latents

    def decode(self, latents: Tensor) -> Tensor:
        """Latents, moved to the nearest entries, -> (B, 1, p, p, p)."""
        volumes: Tensor = self.decoder(fp32_island(self.codebook)(latents))
        return volumes

    def forward(self, volumes: Tensor) -> tuple[Tensor, Tensor]:
        latents = self.encode(volumes)
        return self.decode(latents), latents

    def freeze(self) -> VectorQuantizedAutoencoder:
        """Nothing of it changes any more, in training mode neither."""
        self.codebook.learns = False
        return self.requires_grad_(False)


def commitment(latents: Tensor, codebook: Codebook) -> Tensor:
    """Mean squared distance of latents to their entries; it moves the latents, the entries follow by themselves."""
    latents = at_least_fp32(latents)
    return functional.mse_loss(latents, codebook.nearest(latents))
