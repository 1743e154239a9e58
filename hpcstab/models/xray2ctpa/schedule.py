"""The noise schedule of a diffusion model, and what follows from a prediction at a step t.

T steps; abar(t) = share of the signal's variance that is left at step t; x_t = sqrt(abar) x_0 + sqrt(1 - abar) eps.
``v`` = sqrt(abar) eps - sqrt(1 - abar) x_0. Source: Ho et al. (2020), Nichol and Dhariwal (2021) for the cosine,
Salimans and Ho (2022) for v.
"""

from __future__ import annotations

import math
from typing import Literal

import torch
from torch import Tensor, nn

Prediction = Literal["eps", "v"]
_OFFSET, _MAX_BETA = 0.008, 0.9999  # of the cosine schedule
SNR_GAMMA = 5.0


def cosine_alpha_bars(num_timesteps: int) -> Tensor:
    """abar (T,), float64, falling: cosine with s = 0.008, beta at most 0.9999."""
    at = torch.arange(num_timesteps + 1, dtype=torch.float64) / num_timesteps
    level = torch.cos((at + _OFFSET) / (1 + _OFFSET) * math.pi / 2).square()
    betas = (1 - level[1:] / level[:-1]).clamp(max=_MAX_BETA)
    return (1 - betas).cumprod(0)


def with_zero_terminal_snr(alpha_bars: Tensor) -> Tensor:
    """The schedule stretched so that its first value stays and its last is exactly 0.

    Source: Lin et al., "Common Diffusion Noise Schedules and Sample Steps are Flawed" (2024), algorithm 1.
    """
    roots = alpha_bars.sqrt()
    first, last = roots[0], roots[-1]
    return ((roots - last) * first / (first - last)).square()


class NoiseSchedule(nn.Module):
    """abar(t) as tables on the device; t (B,) int64 in 0..T-1, latents (B, C, d, d, d)."""

    signal: Tensor  # sqrt(abar)
    noise: Tensor  # sqrt(1 - abar)

    def __init__(self, num_timesteps: int, prediction: Prediction, *, zero_terminal_snr: bool) -> None:
        super().__init__()
        alpha_bars = cosine_alpha_bars(num_timesteps)
        if zero_terminal_snr:
            alpha_bars = with_zero_terminal_snr(alpha_bars)
        self.num_timesteps = num_timesteps
        self.prediction = prediction
        self.register_buffer("signal", alpha_bars.sqrt().float(), persistent=False)
        self.register_buffer("noise", (1 - alpha_bars).sqrt().float(), persistent=False)

    def noisy(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """x_t."""
        return _at(self.signal, t, latents) * latents + _at(self.noise, t, latents) * noise

    def target(self, latents: Tensor, noise: Tensor, t: Tensor) -> Tensor:
        """What the network is to predict: eps or v."""
        if self.prediction == "eps":
            return noise
        return _at(self.signal, t, latents) * noise - _at(self.noise, t, latents) * latents

    def latents(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """x_0 as the prediction has it; under ``eps`` its error is amplified by :meth:`amplification`."""
        if self.prediction == "v":
            return _at(self.signal, t, noisy) * noisy - _at(self.noise, t, noisy) * predicted
        return (noisy - _at(self.noise, t, noisy) * predicted) / _at(self.signal, t, noisy)

    def noise_of(self, noisy: Tensor, predicted: Tensor, t: Tensor) -> Tensor:
        """eps as the prediction has it."""
        if self.prediction == "eps":
            return predicted
        return _at(self.noise, t, noisy) * noisy + _at(self.signal, t, noisy) * predicted

    def amplification(self, t: Tensor) -> Tensor:
        """By what an error of the prediction is multiplied in x_0, (B,): at most 1 for v, 6.4e4 for eps at T = 1000."""
        noise, signal = self.noise[t], self.signal[t]
        return noise if self.prediction == "v" else noise / signal

    def is_amplified_less(self, t: Tensor, limit: float) -> Tensor:
        """Is 1 / sqrt(abar) below ``limit``? (B,) boolean; also where abar is 0."""
        return self.signal[t] * limit > 1.0

    def min_snr_weight(self, t: Tensor) -> Tensor:
        """Weight (B,) of a squared error at t: min(SNR, 5) / (SNR + 1) for v, min(SNR, 5) / SNR for eps.

        Source: Hang et al., "Efficient Diffusion Training via Min-SNR Weighting Strategy" (2023). Written with abar, so
        that nothing is divided by an SNR of 0.
        """
        alpha_bar, rest = self.signal[t].square(), self.noise[t].square()
        for_v = torch.minimum(alpha_bar, SNR_GAMMA * rest)
        return for_v if self.prediction == "v" else for_v / alpha_bar


def _at(table: Tensor, t: Tensor, like: Tensor) -> Tensor:
    """Values at t for a batch, (B, 1, 1, 1, 1), wide enough not to lose digits."""
    values = table[t].reshape(-1, *[1] * (like.ndim - 1))
    return values.to(torch.promote_types(like.dtype, torch.float32))
