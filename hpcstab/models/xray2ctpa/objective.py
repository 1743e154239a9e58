"""A training step of the diffusion: from patches to the four loss terms, under the write-up's guards where they are on.

Guards act on the device and are counted there: a check that asks "is any of it NaN?" on the host would wait for it.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor

from hpcstab.models.xray2ctpa.config import Config
from hpcstab.models.xray2ctpa.data import Pairs
from hpcstab.models.xray2ctpa.discriminator import adversarial, hinge
from hpcstab.models.xray2ctpa.draws import Draws, draw
from hpcstab.models.xray2ctpa.features import FrozenFeatures
from hpcstab.models.xray2ctpa.losses import (
    as_image_latents,
    clamped,
    distances,
    only_where,
    perceptual_distances,
    replace_nonfinite,
    slices,
)
from hpcstab.models.xray2ctpa.network import BOUND, LatentDiffusion
from hpcstab.stability.numerics import at_least_fp32, fp32_island
from hpcstab.task import StepContext

MAX_LOSS = 1000.0


class _Rebuilt(NamedTuple):
    """x_0 as predicted, and the true one, of the samples whose t is allowed; elsewhere both are the true one."""

    latents: Tensor
    truth: Tensor


class DiffusionTerms:
    """Call: network, batch of :class:`Patches`, context -> the four terms of the second stage."""

    def __init__(self, config: Config, pairs: Pairs) -> None:
        self._config = config
        self._pairs = pairs
        self._features = FrozenFeatures()

    def __call__(
        self, network: LatentDiffusion, batch: Mapping[str, Tensor], context: StepContext
    ) -> dict[str, Tensor]:
        losses = self._config.losses
        context.count_masked(batch["constant"])
        latents = self._latents(network, batch["volume"], context)
        draws = self._draws(network, latents, batch["number"], context)
        codes = network.or_null(self._codes(network, batch["xray"], context), draws.dropped)
        noisy = network.schedule.noisy(latents, draws.noise, draws.t)
        predicted = at_least_fp32(network(noisy, draws.t, codes, batch["places"]))
        target = network.schedule.target(latents, draws.noise, draws.t)
        is_finite = torch.ones((), dtype=torch.bool, device=context.device)
        if losses.replace_prediction:
            is_finite = predicted.isfinite().all()
            context.count_masked(~is_finite)
            predicted = torch.where(is_finite, predicted, target)
        denoising = distances(predicted, target, losses.distance)
        if losses.weighting == "min_snr":
            denoising = denoising * network.schedule.min_snr_weight(draws.t)
        rebuilt = self._rebuilt(network, noisy, predicted, latents, draws, context)
        terms = {"denoising": denoising.mean(), **self._auxiliary(network, rebuilt, batch, draws, context)}
        if losses.zero_nonfinite:
            terms, loss_is_finite = self._zero_nonfinite(terms, context)
            is_finite = is_finite & loss_is_finite
        if losses.replace_prediction or losses.zero_nonfinite:
            network.withhold_gradients(~is_finite)
        return terms

    def _latents(self, network: LatentDiffusion, volumes: Tensor, context: StepContext) -> Tensor:
        latents = at_least_fp32(network.encode(volumes))
        if self._config.network.latent_norm == "codebook_range_clamped":
            latents, num = clamped(latents, BOUND)
            context.count_limited(num)
        if self._config.network.replace_inputs:
            latents, num = replace_nonfinite(latents)
            context.count_masked(num)
        return latents

    def _draws(self, network: LatentDiffusion, latents: Tensor, numbers: Tensor, context: StepContext) -> Draws:
        on_latents = self._config.losses.perceptual_on == "latents"
        return draw(
            context,
            numbers,
            latents.shape[1:],
            num_timesteps=network.schedule.num_timesteps,
            num_items=len(self._pairs.train),
            num_slices=latents.shape[-1] if on_latents else self._config.data.patch_size,
            dropout=self._config.network.condition_dropout,
        )

    def _codes(self, network: LatentDiffusion, xrays: Tensor, context: StepContext) -> Tensor:
        keys = self._config.network
        if keys.replace_inputs:
            xrays, num = replace_nonfinite(xrays)
            context.count_masked(num)
        codes = network.code(xrays)
        if keys.replace_condition:
            codes, num_replaced = replace_nonfinite(codes)
            codes, num_cut = clamped(codes, BOUND)
            context.count_masked(num_replaced)
            context.count_limited(num_cut)
        return codes

    def _rebuilt(
        self,
        network: LatentDiffusion,
        noisy: Tensor,
        predicted: Tensor,
        latents: Tensor,
        draws: Draws,
        context: StepContext,
    ) -> _Rebuilt:
        losses = self._config.losses
        rebuilt = network.schedule.latents(noisy, predicted, draws.t)
        if losses.max_amplification is not None:
            is_allowed = network.schedule.is_amplified_less(draws.t, losses.max_amplification)
            rebuilt = only_where(is_allowed, rebuilt, latents)
        context.diagnostic("amplification", network.schedule.amplification(draws.t).amax())
        context.diagnostic("rebuilt_absmax", rebuilt.abs().amax())
        if losses.replace_prediction:
            rebuilt, num = clamped(rebuilt, BOUND)
            context.count_limited(num)
        return _Rebuilt(rebuilt, latents)

    def _auxiliary(
        self,
        network: LatentDiffusion,
        rebuilt: _Rebuilt,
        batch: Mapping[str, Tensor],
        draws: Draws,
        context: StepContext,
    ) -> dict[str, Tensor]:
        """Perceptual and adversarial terms that have a weight; 0 for the others."""
        losses = self._config.losses
        terms: dict[str, Tensor] = {}
        if losses.skip_auxiliary_under_amp and torch.is_autocast_enabled(context.device.type):
            return terms
        if losses.weights.perceptual > 0:
            terms["perceptual"] = self._perceptual(network, rebuilt, batch["volume"], draws, context)
        if network.discriminator is not None:
            island = fp32_island if losses.fp32_features else (lambda function: function)
            terms["adversarial"] = island(adversarial)(network.discriminator, rebuilt.latents)
            terms["discriminator"] = island(hinge)(network.discriminator, rebuilt.truth, rebuilt.latents)
        if losses.skip_auxiliary_under_amp:
            for name, term in terms.items():
                context.count_masked(~term.isfinite())
                terms[name] = torch.where(term.isfinite(), term, 0.0)
        return terms

    def _perceptual(
        self, network: LatentDiffusion, rebuilt: _Rebuilt, volumes: Tensor, draws: Draws, context: StepContext
    ) -> Tensor:
        """Distance of one slice of each sample in the frozen features, in fp16 where mixed precision has its way."""
        losses, device = self._config.losses, context.device
        if losses.perceptual_on == "latents":
            pictures = [slices(as_image_latents(latents), draws.slices) for latents in rebuilt]
        else:
            decode = fp32_island(network.decode) if losses.fp32_features else network.decode
            pictures = [slices(at_least_fp32(decode(rebuilt.latents)), draws.slices), slices(volumes, draws.slices)]
        rebuilt_images, true_images = pictures
        is_fp16 = torch.is_autocast_enabled(device.type) and not losses.fp32_features
        with torch.autocast(device.type, torch.float16, enabled=is_fp16):
            return perceptual_distances(rebuilt_images, true_images, self._features.to(device)).mean()

    def _zero_nonfinite(self, terms: dict[str, Tensor], context: StepContext) -> tuple[dict[str, Tensor], Tensor]:
        """Where some term is not finite all are 0; each is cut to 0..1000."""
        is_finite = torch.stack([term.isfinite() for term in terms.values()]).all()
        context.count_masked(~is_finite)
        for name, term in terms.items():
            context.count_limited((term > MAX_LOSS) & is_finite)
            if name != "adversarial":  # it is below 0 by right
                term = term.clamp(0.0, MAX_LOSS)
            terms[name] = torch.where(is_finite, term, 0.0)
        return terms, is_finite
