"""Parts of the 3D networks. B = samples, C = channels, d = edge in voxels."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn
from torch.nn import functional

_MAX_GROUPS = 8
_MAX_PERIOD = 10_000.0


def group_norm(channels: int) -> nn.GroupNorm:
    """Statistics of one sample alone, so that neither the batch nor the ranks change them."""
    return nn.GroupNorm(math.gcd(_MAX_GROUPS, channels), channels)


def conv(num_in: int, num_out: int, stride: int = 1) -> nn.Conv3d:
    """3x3x3, padded."""
    return nn.Conv3d(num_in, num_out, 3, stride=stride, padding=1)


class ResidualBlock(nn.Module):
    """Two convolutions beside a skip; with ``embedding_size`` scaled and shifted by an embedding in between (FiLM).

    Forward: (B, num_in, d, d, d), embedding (B, E) or None -> (B, num_out, d, d, d).
    """

    def __init__(self, num_in: int, num_out: int, embedding_size: int | None = None) -> None:
        super().__init__()
        self.norm_in, self.conv_in = group_norm(num_in), conv(num_in, num_out)
        self.norm_out, self.conv_out = group_norm(num_out), conv(num_out, num_out)
        self.film = nn.Linear(embedding_size, 2 * num_out) if embedding_size is not None else None
        self.skip = nn.Conv3d(num_in, num_out, 1) if num_in != num_out else nn.Identity()

    def forward(self, values: Tensor, embedding: Tensor | None = None) -> Tensor:
        hidden = self.norm_out(self.conv_in(functional.silu(self.norm_in(values))))
        if self.film is not None and embedding is not None:
            scale, shift = self.film(embedding)[:, :, None, None, None].chunk(2, dim=1)
            hidden = hidden * (1 + scale) + shift
        result: Tensor = self.skip(values) + self.conv_out(functional.silu(hidden))
        return result


class SelfAttention(nn.Module):
    """All voxels of a small grid see each other. Forward: (B, C, d, d, d) -> the same."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.norm = group_norm(channels)
        self.to_all = nn.Conv3d(channels, 3 * channels, 1)
        self.output = nn.Conv3d(channels, channels, 1)

    def forward(self, values: Tensor) -> Tensor:
        queries, keys, contents = self.to_all(self.norm(values)).flatten(2).transpose(1, 2).chunk(3, dim=-1)
        seen = functional.scaled_dot_product_attention(queries, keys, contents)
        result: Tensor = values + self.output(seen.transpose(1, 2).reshape(values.shape))
        return result


def sinusoids(positions: Tensor, size: int) -> Tensor:
    """Sines and cosines of positions (B,) at ``size`` / 2 frequencies: (B, size), fp32."""
    half = size // 2
    rates = torch.exp(-math.log(_MAX_PERIOD) * torch.arange(half, device=positions.device) / half)
    angles = positions.float()[:, None] * rates
    return torch.cat([angles.sin(), angles.cos()], dim=1)
