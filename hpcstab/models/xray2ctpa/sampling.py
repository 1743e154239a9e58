"""From noise to latents: DDPM, all T steps with noise in each, and DDIM, a few steps without.

Source: Ho et al. (2020), Song et al., "Denoising Diffusion Implicit Models" (2021).
"""

from __future__ import annotations

from itertools import pairwise

import torch
from torch import Tensor

from hpcstab.models.xray2ctpa.network import LatentDiffusion
from hpcstab.stability.numerics import at_least_fp32


def sample(
    network: LatentDiffusion, codes: Tensor, places: Tensor, noise: Tensor, generator: torch.Generator
) -> Tensor:
    """Normalised latents (B, C, d, d, d) from noise of that shape, under codes (B, E), at places (B, 2, 3).

    The rebuilt x_0 is cut at the largest latent of the training set, in each step.
    """
    keys, last = network.keys, network.schedule.num_timesteps - 1
    steps = torch.linspace(last, 0, keys.sampling_steps).round().to(torch.int64).tolist()
    latents, x = noise, noise
    for t, following in pairwise([*steps, None]):
        times = torch.full((len(noise),), t, dtype=torch.int64, device=noise.device)
        predicted = at_least_fp32(_predict(network, x, times, codes, places))
        latents = network.schedule.latents(x, predicted, times)
        latents = latents.clamp(-network.latent_bound, network.latent_bound)
        if following is None:
            break
        before = torch.full_like(times, following)
        if keys.sampler == "ddim":
            x = network.schedule.noisy(latents, _noise_between(network, x, latents, times), before)
        else:
            x = _ddpm_step(network, x, latents, times, before, generator)
    return latents


def _predict(network: LatentDiffusion, x: Tensor, times: Tensor, codes: Tensor, places: Tensor) -> Tensor:
    """The prediction under the condition, pushed away from that under none where guidance is not 1."""
    guided: Tensor = network(x, times, codes, places)
    if network.keys.guidance == 1.0:
        return guided
    dropped = torch.ones(len(codes), dtype=torch.bool, device=codes.device)
    free: Tensor = network(x, times, network.or_null(codes, dropped), places)
    return free + network.keys.guidance * (guided - free)


def _noise_between(network: LatentDiffusion, x: Tensor, latents: Tensor, times: Tensor) -> Tensor:
    """The noise that leads from x_0 to x_t."""
    signal, noise = (
        table[times].reshape(-1, 1, 1, 1, 1) for table in (network.schedule.signal, network.schedule.noise)
    )
    return (x - signal * latents) / noise


def _ddpm_step(
    network: LatentDiffusion, x: Tensor, latents: Tensor, times: Tensor, before: Tensor, generator: torch.Generator
) -> Tensor:
    """x at the step before: mean and variance of q(x_before | x_t, x_0)."""
    tables = network.schedule.signal.square()
    bar, bar_before = (tables[t].reshape(-1, 1, 1, 1, 1) for t in (times, before))
    alpha = bar / bar_before
    from_latents = bar_before.sqrt() * (1 - alpha) / (1 - bar) * latents
    from_x = alpha.sqrt() * (1 - bar_before) / (1 - bar) * x
    variance = (1 - bar_before) / (1 - bar) * (1 - alpha)
    fresh = torch.randn(x.shape, generator=generator, device=x.device)
    return from_latents + from_x + variance.sqrt() * fresh
