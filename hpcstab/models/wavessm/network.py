"""The restoration network of WaveSSM-X: a U-shape of state-space blocks and a Fourier refinement.

Architecture as in research on the write-up `2-wavessm` (a Restormer-like U-Net, Zamir et al., CVPR 2022, with Mamba
blocks); Haar instead of db3 wavelets.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from hpcstab.models.wavessm.blocks import DualStream, StateSpaceBlock, downsample, upsample
from hpcstab.models.wavessm.config import Network
from hpcstab.models.wavessm.fourier import MultiScaleWaveFourier, SpectralTransform
from hpcstab.models.wavessm.state_space import FrequencyAwareStateSpace
from hpcstab.stability.numerics import fp32_island


class WaveStateSpaceNetwork(nn.Module):
    """Corrupted images in, restored ones out; where the corruption is it has to find by itself.

    Forward: (B, 3, H, W) in [0, 1], H and W multiples of `2 ** (len(keys.channels) + 1)` -> (B, 3, H, W), unbounded.
    """

    def __init__(self, keys: Network) -> None:
        super().__init__()

        def level(channels: int, num_blocks: int) -> nn.Sequential:
            return nn.Sequential(*(StateSpaceBlock(channels, keys) for _ in range(num_blocks)))

        *outer, deepest = keys.channels
        *num_outer, num_deepest = keys.num_blocks
        self.embed = nn.Conv2d(3, keys.channels[0], 3, padding=1, bias=False)
        self.encoder = nn.ModuleList(map(level, outer, num_outer))
        self.down = nn.ModuleList(map(downsample, outer))
        self.deepest = level(deepest, num_deepest)
        self.bottleneck = DualStream(deepest, keys)
        self.up = nn.ModuleList(upsample(2 * channels) for channels in reversed(outer))
        self.decoder = nn.ModuleList(map(level, reversed(outer), reversed(num_outer)))
        self.refinement_ffc = MultiScaleWaveFourier(keys.channels[0], keys.global_ratios)
        self._fp32_refinement = keys.fp32_refinement
        self.output = nn.Conv2d(keys.channels[0], 3, 3, padding=1, bias=False)
        if keys.starts_as_identity:
            nn.init.zeros_(self.output.weight)

    def forward(self, images: Tensor) -> Tensor:
        features = self.embed(images)
        skips = []
        for blocks, down in zip(self.encoder, self.down, strict=True):
            skips.append(blocks(features))
            features = down(skips[-1])
        features = self.deepest(features)
        features = features + self.bottleneck(features)
        for up, blocks in zip(self.up, self.decoder, strict=True):
            features = blocks(up(features) + skips.pop())
        refine = fp32_island(self.refinement_ffc) if self._fp32_refinement else self.refinement_ffc
        features = features + refine(features)
        restored: Tensor = self.output(features) + images
        return restored


def largest_magnitudes(network: nn.Module) -> dict[str, Tensor]:
    """Largest magnitude of a Fourier coefficient and of a state in the last forward pass; 0 where there is none."""
    found: dict[str, list[Tensor]] = {"spectrum_absmax": [], "state_absmax": []}
    for module in network.modules():
        if isinstance(module, SpectralTransform):
            found["spectrum_absmax"].append(module.spectrum_absmax.float())
        elif isinstance(module, FrequencyAwareStateSpace):
            found["state_absmax"].append(module.state_absmax.float())
    return {name: torch.stack(values).amax() if values else torch.zeros(()) for name, values in found.items()}
