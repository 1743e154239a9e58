"""The blocks that WaveSSM-X is built of; B = images, C = channels, H x W = pixels."""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.wavessm.config import Network
from hpcstab.models.wavessm.state_space import FrequencyAwareStateSpace
from hpcstab.models.wavessm.wavelet import Bands, haar_transform, inverse_haar_transform

_FEED_FORWARD_EXPANSION = 2.66


class GatedFeedForward(nn.Module):
    """GDFN of Restormer (Zamir et al., CVPR 2022): one half gates the other. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        hidden = int(_FEED_FORWARD_EXPANSION * channels)
        self.expand = nn.Conv2d(channels, 2 * hidden, 1, bias=False)
        self.local = nn.Conv2d(2 * hidden, 2 * hidden, 3, padding=1, groups=2 * hidden, bias=False)
        self.contract = nn.Conv2d(hidden, channels, 1, bias=False)

    def forward(self, features: Tensor) -> Tensor:
        gate, values = self.local(self.expand(features)).chunk(2, dim=1)
        contracted: Tensor = self.contract(functional.gelu(gate) * values)
        return contracted


class StateSpaceBlock(nn.Module):
    """`x + proj(FASS(norm x))`, then `x + GDFN(norm x)`; (B, C, H, W) -> (B, C, H, W), H and W even."""

    def __init__(self, channels: int, keys: Network) -> None:
        super().__init__()
        self.mixer_norm = nn.GroupNorm(1, channels)
        self.mixer = FrequencyAwareStateSpace(channels, keys.num_states, keys.scan, keys.fp32_scan)
        self.mixer_proj = nn.Conv2d(channels, channels, 1)
        self.feed_forward_norm = nn.GroupNorm(1, channels)
        self.feed_forward = GatedFeedForward(channels)

    def forward(self, features: Tensor) -> Tensor:
        features = features + self.mixer_proj(self.mixer(self.mixer_norm(features)))
        mixed: Tensor = features + self.feed_forward(self.feed_forward_norm(features))
        return mixed


class CrossFrequencyAttention(nn.Module):
    """Channels of the low band attend to those of the high bands.

    Forward: low (B, C, H, W), high (B, 3C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.query = nn.Conv2d(channels, channels, 1, bias=False)
        self.key_value = nn.Conv2d(3 * channels, 2 * channels, 1, bias=False)
        self.temperature = nn.Parameter(torch.ones(()))
        self.out = nn.Conv2d(channels, channels, 1, bias=False)

    def forward(self, low: Tensor, high: Tensor) -> Tensor:
        query = functional.normalize(self.query(low).flatten(2), dim=2)
        key, value = self.key_value(high).flatten(2).chunk(2, dim=1)
        weights = (query @ functional.normalize(key, dim=2).transpose(1, 2) * self.temperature).softmax(dim=2)
        attended: Tensor = self.out((weights @ value).unflatten(2, low.shape[2:]))
        return attended


class DualStream(nn.Module):
    """The bottleneck: a scan over the low band, another over the high ones, and attention from one to the other.

    Forward: (B, C, H, W), H and W multiples of 4 -> (B, C, H, W).
    """

    def __init__(self, channels: int, keys: Network) -> None:
        super().__init__()
        self.low = FrequencyAwareStateSpace(channels, keys.num_low_states, keys.scan, keys.fp32_scan)
        self.high = FrequencyAwareStateSpace(3 * channels, keys.num_states, keys.scan, keys.fp32_scan)
        self.attention = CrossFrequencyAttention(channels)

    def forward(self, features: Tensor) -> Tensor:
        bands = haar_transform(features)
        high = self.high(torch.cat(bands[1:], dim=1))
        low = self.low(bands.low)
        low = low + self.attention(low, high)
        return inverse_haar_transform(Bands(low, *high.chunk(3, dim=1)))


def downsample(channels: int) -> nn.Module:
    """(B, C, H, W) -> (B, 2C, H/2, W/2)."""
    return nn.Sequential(nn.Conv2d(channels, channels // 2, 3, padding=1, bias=False), nn.PixelUnshuffle(2))


def upsample(channels: int) -> nn.Module:
    """(B, C, H, W) -> (B, C/2, 2H, 2W)."""
    return nn.Sequential(nn.Conv2d(channels, 2 * channels, 3, padding=1, bias=False), nn.PixelShuffle(2))
