"""The frequency-aware state-space layer (FASS): a selective scan whose parameters the wavelet bands of the image set.

B = images, C = channels, H x W = pixels, L = H W, D = 2 C, N = states a channel.
"""

from __future__ import annotations

import math
from functools import partial

import torch
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

from hpcstab.models.wavessm.scan import RECURRENCES, Scan, selective_scan
from hpcstab.models.wavessm.wavelet import haar_transform
from hpcstab.stability.numerics import fp32_island

_EXPANSION = 2
_KERNEL = 4  # of the causal convolution before the scan
_STEP_RANGE = (1e-3, 0.1)
_FP32_BYTES = 4
_MAX_KEPT_BYTES = 64 * 2**20  # of all states of a scan, in fp32: what is larger is not kept for the backward pass


def serpentine(features: Tensor) -> Tensor:
    """(B, C, H, W) -> (L, B, C): row after row, every second one backwards, so that neighbours stay neighbours."""
    return _turned(features).flatten(2).permute(2, 0, 1)


def from_serpentine(sequence: Tensor, height: int) -> Tensor:
    """(L, B, C) -> (B, C, H, W): the inverse of `serpentine`."""
    return _turned(sequence.permute(1, 2, 0).reshape(*sequence.shape[1:], height, -1))


def _turned(features: Tensor) -> Tensor:
    """Every second row backwards; its own inverse."""
    odd = torch.arange(features.shape[2], device=features.device) % 2 == 1
    return torch.where(odd[:, None], features.flip(3), features)


class BandGuide(nn.Module):
    """What the pooled wavelet bands of an image say to the scan: factors on write, read and step size, near 1.

    Forward: (B, C, H, W) -> write (B, N), read (B, N), step (B, D).
    """

    def __init__(self, channels: int, num_states: int) -> None:
        super().__init__()
        self.low = nn.Linear(channels, num_states)
        self.diagonal = nn.Linear(channels, num_states)
        self.edges = nn.Linear(channels, _EXPANSION * channels)
        self.strengths = nn.Parameter(torch.full((3,), 0.1))

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        bands = haar_transform(features)
        low, diagonal = bands.low.mean((2, 3)), bands.diagonal.abs().mean((2, 3))
        edges = (bands.horizontal.abs() + bands.vertical.abs()).mean((2, 3))
        for_write, for_read, for_step = self.strengths
        return (
            1 + for_write * self.low(low).tanh(),
            1 + for_read * self.diagonal(diagonal).tanh(),
            0.5 + (for_step * self.edges(edges)).sigmoid(),
        )


class FrequencyAwareStateSpace(nn.Module):
    """A selective scan over the pixels in serpentine order, guided by wavelet bands, with a gate and a local mix.

    `state_absmax` is the largest magnitude of a state in the last forward pass.

    Args:
        channels: C.
        num_states: N.
        scan: `exact`, or `clamped` (the failing state's).
        fp32_scan: run the scan in fp32 inside an autocast region.

    Forward: (B, C, H, W), H and W even -> (B, C, H, W).
    """

    def __init__(self, channels: int, num_states: int, scan: Scan, fp32_scan: bool) -> None:
        super().__init__()
        inner, step_rank = _EXPANSION * channels, math.ceil(channels / 16)
        self._sizes = [num_states, num_states, step_rank]
        self._recurrence = RECURRENCES[scan]
        self._fp32_scan = fp32_scan
        self.in_proj = nn.Linear(channels, 2 * inner, bias=False)
        self.causal_conv = nn.Conv1d(inner, inner, _KERNEL, padding=_KERNEL - 1, groups=inner)
        self.x_proj = nn.Linear(inner, sum(self._sizes), bias=False)
        self.step_proj = nn.Linear(step_rank, inner)
        self.guide = BandGuide(channels, num_states)
        self.log_rates = nn.Parameter(torch.arange(1.0, num_states + 1).log()[:, None].repeat(1, inner))
        self.direct = nn.Parameter(torch.ones(inner))
        self.norm = nn.LayerNorm(inner)
        self.out_proj = nn.Linear(inner, channels, bias=False)
        self.skip_scale = nn.Parameter(torch.ones(()))
        self.local = nn.Conv2d(channels, channels, 3, padding=1, groups=channels)
        self.attention = nn.Conv2d(channels, channels, 1)
        self.state_absmax = torch.zeros(())
        _start_step_sizes(self.step_proj)

    def forward(self, features: Tensor) -> Tensor:
        inputs, gate = self.in_proj(serpentine(features)).chunk(2, dim=2)
        inputs = functional.silu(self._causal(inputs))
        outputs = self._scanned(inputs, features) + inputs * self.direct
        outputs = self.out_proj(self.norm(outputs * functional.silu(gate)))
        mixed = from_serpentine(outputs, features.shape[2]) + features * self.skip_scale
        local = self.local(mixed)
        attended: Tensor = local * self.attention(local.mean((2, 3), keepdim=True)).sigmoid()
        return attended

    def _causal(self, inputs: Tensor) -> Tensor:
        """A depthwise convolution along the sequence that sees the present and the past; (L, B, D) -> (L, B, D)."""
        convolved: Tensor = self.causal_conv(inputs.permute(1, 2, 0))[..., : inputs.shape[0]]
        return convolved.permute(2, 0, 1)

    def _scanned(self, inputs: Tensor, features: Tensor) -> Tensor:
        write, read, step_code = self.x_proj(inputs).split(self._sizes, dim=2)
        for_write, for_read, for_step = self.guide(features)
        steps = (functional.softplus(self.step_proj(step_code)) * for_step).clamp(*_STEP_RANGE)
        scan = fp32_island(selective_scan) if self._fp32_scan else selective_scan
        num_states = inputs.numel() * self._sizes[0]
        if num_states * _FP32_BYTES > _MAX_KEPT_BYTES:
            scan = partial(checkpoint, scan, use_reentrant=False, preserve_rng_state=False)  # draws nothing
        outputs, self.state_absmax = scan(
            inputs, steps, -self.log_rates.exp(), write * for_write, read * for_read, self._recurrence
        )
        return outputs


def _start_step_sizes(step_proj: nn.Linear) -> None:
    """Step sizes start spread evenly, in the logarithm, over their allowed range (Mamba's start)."""
    low, high = map(math.log, _STEP_RANGE)
    steps = torch.linspace(low, high, step_proj.out_features).exp()
    with torch.no_grad():
        step_proj.bias.copy_(steps.expm1().log())  # the inverse of softplus
