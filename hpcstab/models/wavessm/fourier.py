"""The refinement of WaveSSM-X: Fourier convolutions beside local ones, gated by the low wavelet band.

Names of attributes are those of the write-up, whose checkpoint was aborted at
`refinement_ffc.scales.0.ffc.local_conv.1.running_mean`.
Source: Suvorov et al., "Resolution-robust Large Mask Inpainting with Fourier Convolutions" (WACV 2022).
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from hpcstab.models.wavessm.wavelet import haar_transform


class SpectralTransform(nn.Module):
    """A 1x1 convolution over the spectrum: each output pixel sees the whole image.

    The transform runs in fp32 and is orthonormal; what an autocast region makes of convolution and BatchNorm is
    its own. `spectrum_absmax` is the largest magnitude in the last spectrum, before it is cast.

    Forward: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.conv = nn.Sequential(
            nn.Conv2d(2 * channels, 2 * channels, 1, bias=False), nn.BatchNorm2d(2 * channels), nn.ReLU()
        )
        self.spectrum_absmax = torch.zeros(())

    def forward(self, features: Tensor) -> Tensor:
        spectrum = torch.fft.rfft2(features.float(), norm="ortho")
        stacked = torch.cat([spectrum.real, spectrum.imag], dim=1)
        self.spectrum_absmax = stacked.detach().abs().amax()
        real, imaginary = self.conv(stacked).float().chunk(2, dim=1)
        filtered: Tensor = torch.fft.irfft2(torch.complex(real, imaginary), s=features.shape[-2:], norm="ortho")
        return filtered


class WaveFourierConvolution(nn.Module):
    """Some channels filtered locally, the others in the spectrum; the low wavelet band gates both.

    Args:
        channels: C >= 2.
        global_ratio: the part of the channels that goes through the spectrum, in (0, 1).

    Forward: (B, C, H, W), H and W even -> (B, C, H, W).
    """

    def __init__(self, channels: int, global_ratio: float) -> None:
        super().__init__()
        num_global = min(channels - 1, max(1, round(channels * global_ratio)))
        self.num_local = channels - num_global
        self.local_conv = nn.Sequential(
            nn.Conv2d(self.num_local, self.num_local, 3, padding=1, bias=False),
            nn.BatchNorm2d(self.num_local),
            nn.ReLU(),
        )
        self.global_conv = SpectralTransform(num_global)
        self.gate = nn.Sequential(nn.Conv2d(channels, channels, 1, bias=False), nn.BatchNorm2d(channels), nn.Sigmoid())
        self.fusion = nn.Conv2d(channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        filtered = torch.cat(
            [self.local_conv(features[:, : self.num_local]), self.global_conv(features[:, self.num_local :])], dim=1
        )
        low = functional.interpolate(haar_transform(features).low, scale_factor=2.0, mode="nearest")
        fused: Tensor = self.fusion(filtered * self.gate(low)) + features
        return fused


class WaveFourierBlock(nn.Module):
    """`x + ffc(normalised x)`; the instance norm leaves the spectrum no DC. (B, C, H, W) -> (B, C, H, W)."""

    def __init__(self, channels: int, global_ratio: float) -> None:
        super().__init__()
        self.norm = nn.InstanceNorm2d(channels)
        self.ffc = WaveFourierConvolution(channels, global_ratio)

    def forward(self, features: Tensor) -> Tensor:
        refined: Tensor = features + self.ffc(self.norm(features))
        return refined


class MultiScaleWaveFourier(nn.Module):
    """Blocks side by side that differ in their global part, all at full resolution despite the write-up's name.

    Forward: (B, C, H, W) -> (B, C, H, W).
    """

    def __init__(self, channels: int, global_ratios: Sequence[float]) -> None:
        super().__init__()
        self.scales = nn.ModuleList(WaveFourierBlock(channels, ratio) for ratio in global_ratios)
        self.fusion = nn.Conv2d(len(global_ratios) * channels, channels, 1)

    def forward(self, features: Tensor) -> Tensor:
        fused: Tensor = self.fusion(torch.cat([scale(features) for scale in self.scales], dim=1))
        return fused
