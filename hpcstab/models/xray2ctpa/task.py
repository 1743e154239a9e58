"""xray2ctpa as a task: an X-ray in, a CT out, judged on whole held-out volumes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from typing import ClassVar

import torch
from torch import Tensor, nn

from hpcstab.config import RunConfig
from hpcstab.config.common import OptimizerConfig
from hpcstab.data.checks import check_arrays
from hpcstab.data.chest_scans import HIGHEST_HU, LOWEST_HU
from hpcstab.models.xray2ctpa import config as keys
from hpcstab.models.xray2ctpa.autoencoder import VectorQuantizedAutoencoder, commitment
from hpcstab.models.xray2ctpa.data import Pairs, Patches, Volumes, chests_of
from hpcstab.models.xray2ctpa.evaluation import (
    AUTOENCODER_METRICS,
    DIFFUSION_METRICS,
    RATIOS,
    evaluate_autoencoder,
    evaluate_diffusion,
    mean_patches,
    scores_of,
    some_samples,
    summarize,
)
from hpcstab.models.xray2ctpa.fitting import fit_autoencoder, new_autoencoder
from hpcstab.models.xray2ctpa.network import LatentDiffusion
from hpcstab.models.xray2ctpa.objective import DiffusionTerms
from hpcstab.models.xray2ctpa.pictures import pictures_of
from hpcstab.models.xray2ctpa.pretrained import load_autoencoder
from hpcstab.seeds import keyed_seed
from hpcstab.stability.numerics import at_least_fp32, fp32_island
from hpcstab.task import Baseline, DataFinding, Metric, Partial, Picture, Split, StepContext

STAGE_1_TERMS = ("reconstruction", "commitment")
STAGE_2_TERMS = ("denoising", "perceptual", "adversarial", "discriminator")


class Task:
    """Latent diffusion from an X-ray to a CT (write-up xray2ctpa), or the autoencoder under it."""

    Config: ClassVar[type[RunConfig]] = keys.Config
    loss_term_names = (*STAGE_1_TERMS, *STAGE_2_TERMS)
    eval_batch_size = 4

    def __init__(self, config: keys.Config, seed: int) -> None:
        self._config = config
        self._seed = seed
        self._is_diffusion = config.network.stage == "diffusion"
        self.metrics: tuple[Metric, ...] = DIFFUSION_METRICS if self._is_diffusion else AUTOENCODER_METRICS
        self.diagnostics: tuple[str, ...] = ("amplification", "rebuilt_absmax") if self._is_diffusion else ()
        self._pairs = Pairs(config.data, chests_of(config.data, seed))
        self._terms = DiffusionTerms(config, self._pairs)

    def network(self) -> nn.Module:
        keys = self._config.network
        if not self._is_diffusion:
            return new_autoencoder(keys)
        network = LatentDiffusion(keys, new_autoencoder(keys), is_adversarial=self._config.losses.is_adversarial)
        network.autoencoder.load_state_dict(self._autoencoder.state_dict())
        network.normalize(self._training_patches)
        return network

    def optimizers(self, network: nn.Module) -> Mapping[str, tuple[OptimizerConfig, list[Tensor]]]:
        """The discriminator, where there is one, has its own."""
        own: dict[str, Tensor] = {
            name: value
            for name, value in network.named_parameters()
            if name.startswith("discriminator.") and value.requires_grad
        }
        others: list[Tensor] = [
            value for name, value in network.named_parameters() if value.requires_grad and name not in own
        ]
        named: dict[str, tuple[OptimizerConfig, list[Tensor]]] = {"network": (self._config.optimizer, others)}
        return named | ({"discriminator": (self._config.discriminator_optimizer, list(own.values()))} if own else {})

    def dataset(self, split: Split) -> Patches | Volumes:
        return self._pairs[split]

    def loss_terms(self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext) -> Mapping[str, Tensor]:
        """``batch`` of :class:`Patches` -> the terms of both stages; those of the other stage are 0."""
        compute = self._diffusion_terms if self._is_diffusion else self._autoencoder_terms
        if not self._config.network.amp:
            compute = fp32_island(compute)
        nothing = dict.fromkeys(self.loss_term_names, torch.zeros((), device=context.device))
        return nothing | compute(network, batch, context)

    def evaluate(self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext) -> Mapping[str, Partial]:
        """``batch`` of :class:`Volumes`."""
        if self._is_diffusion:
            compute = evaluate_diffusion if self._config.network.amp else fp32_island(evaluate_diffusion)
            return compute(_as_diffusion(network), batch, context, self._config)
        return evaluate_autoencoder(network, batch, self._config.data.volume_size)

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        return summarize(totals)

    def baselines(self) -> Sequence[Baseline]:
        """The floor of the diffusion is a network that predicts zero; beside it what needs no diffusion at all.

        The mean of the training patches blurs all chests into one, and so has a high PSNR; another chest is a sharp one
        that ignores the X-ray; the autoencoder is what sampling can reach at best.
        """
        validation, mean = self._pairs.validation, mean_patches(self._pairs.train)
        of_mean = scores_of(validation, lambda volumes, _: mean.expand_as(volumes))
        if not self._is_diffusion:
            return [Baseline("mean_patches", "floor", {metric.name: of_mean[metric.name] for metric in self.metrics})]
        others = self._pairs.some_training_volumes(len(validation))
        return [
            Baseline("zero_prediction", "floor", self._scores_of_zero()),
            Baseline("mean_patches", "reference", of_mean),
            Baseline("another_chest", "reference", scores_of(validation, lambda _, index: others[index])),
            Baseline("autoencoder", "reference", scores_of(validation, lambda volumes, _: self._rebuild(volumes))),
        ]

    def data_facts(self) -> Mapping[str, int | float | str]:
        train = self._pairs.train
        facts: dict[str, int | float | str] = {
            **self._pairs.chests.facts,
            "num_train_volumes": len(self._pairs.chests.splits["train"]),
            "num_validation_volumes": len(self._pairs.validation),
            "num_train_patches": len(train),
            "num_constant_patches": self._pairs.num_constant,
            "num_dropped_patches": self._pairs.num_dropped,
        }
        if self._is_diffusion:
            rebuilt = scores_of(self._pairs.validation, lambda volumes, _: self._rebuild(volumes))["psnr"]
            origin = "fitted before step 0" if self._config.network.autoencoder == "fitted" else "pretrained"
            facts |= {"autoencoder": origin, "autoencoder_psnr_db": round(rebuilt, 2)}
            if self._config.network.autoencoder == "fitted":
                facts["autoencoder_fit_steps"] = self._config.network.fit_steps
        return facts

    def samples(self, network: nn.Module, context: StepContext) -> Sequence[Picture]:
        """The first held-out chests: X-ray, true slices and sampled ones."""
        return pictures_of(network, self._pairs.validation, context, self._config)

    def check_data(self) -> Sequence[DataFinding]:
        shape = (self._config.data.volume_size,) * 3
        splits: tuple[Split, ...] = ("train", "validation")
        volumes = {str(split): self._pairs.named(split) for split in splits}
        return [*self._pairs.chests.findings, *check_arrays(volumes, shape, (LOWEST_HU, HIGHEST_HU))]

    def _scores_of_zero(self) -> dict[str, float]:
        """What sampling gives under a network as it begins, which predicts zero."""
        with torch.random.fork_rng(devices=[]), torch.no_grad():
            network = self.network().eval()

        def made(volumes: Tensor, index: int) -> Tensor:
            generator = torch.Generator().manual_seed(keyed_seed(self._seed, "zero_prediction", index))
            item = self._pairs.validation[index]
            codes = _as_diffusion(network).code(item["xray"][None]).expand(volumes.shape[1], -1)
            shape = _as_diffusion(network).encode(volumes[0]).shape
            return some_samples(_as_diffusion(network), codes, item["places"], shape, generator).mean(0)[None]

        with torch.no_grad():
            scores = scores_of(self._pairs.validation, made)
        return scores | dict.fromkeys((*RATIOS, "worst_loss_ratio"), 1.0)

    def _rebuild(self, volumes: Tensor) -> Tensor:
        """What the frozen autoencoder makes of volumes (V, P, 1, p, p, p)."""
        with torch.no_grad():
            rebuilt: Tensor = self._autoencoder(volumes.flatten(0, 1))[0].reshape(volumes.shape)
        return rebuilt

    @cached_property
    def _training_patches(self) -> Tensor:
        train = self._pairs.train
        return torch.stack([train[index]["volume"] for index in range(len(train))])

    @cached_property
    def _autoencoder(self) -> VectorQuantizedAutoencoder:
        """The frozen autoencoder of the second stage."""
        keys = self._config.network
        if keys.autoencoder == "pretrained":
            return load_autoencoder(keys)
        return fit_autoencoder(keys, self._training_patches, self._seed)

    def _autoencoder_terms(
        self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext
    ) -> dict[str, Tensor]:
        del context
        rebuilt, latents = network(batch["volume"])
        assert isinstance(network, VectorQuantizedAutoencoder)
        return {
            "reconstruction": nn.functional.l1_loss(at_least_fp32(rebuilt), batch["volume"]),
            "commitment": fp32_island(commitment)(latents, network.codebook),
        }

    def _diffusion_terms(
        self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext
    ) -> dict[str, Tensor]:
        return self._terms(_as_diffusion(network), batch, context)


def _as_diffusion(network: nn.Module) -> LatentDiffusion:
    assert isinstance(network, LatentDiffusion)
    return network
