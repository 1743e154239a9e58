"""vae2d as a task: images in, images out, judged by what it rebuilds and by what it makes up."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal

import torch
from torch import Tensor

from hpcstab.config import RunConfig
from hpcstab.models.vae2d import config as keys
from hpcstab.models.vae2d.data import ImageItems, block_pca, mean_image
from hpcstab.models.vae2d.images import images_of
from hpcstab.models.vae2d.losses import (
    effective_beta,
    gaussian_nll,
    kl_per_latent,
    l1_ssim,
    reduced,
    spectral_l1,
    squared_error,
    with_free_bits,
)
from hpcstab.models.vae2d.metrics import (
    active_units,
    aggregate_kl,
    diversity,
    grid_powers,
    sharpness,
)
from hpcstab.models.vae2d.network import KLAutoencoder, Posterior
from hpcstab.models.vae2d.pictures import sheet
from hpcstab.quality import psnr_db, ssim
from hpcstab.task import Baseline, DataFinding, Metric, Partial, Picture, Split, StepContext, Sum

NUM_PICTURED = 8


class Task:
    """The KL autoencoder on chest films, head slices or images of a folder (write-up vae2d)."""

    Config: ClassVar[type[RunConfig]] = keys.Config
    metrics = (
        Metric("psnr", "dB", "higher", "-10 log10(MSE), peak 1, of each image rebuilt from the mean; mean over images"),
        Metric("psnr_sampled", "dB", "higher", "the same from a sample of the posterior: what the decoder trained on"),
        Metric("ssim", "1", "higher", "SSIM, 11x11 Gaussian window of 1.5 pixels, of images rebuilt from the mean"),
        Metric("ssim_sampled", "1", "higher", "the same from a sample of the posterior"),
        Metric("kl_raw", "nat", "lower", "KL from the prior a latent, without free bits, mean over latents and images"),
        Metric("free_bits", "nat", "lower", "the floor that the loss puts under the KL of each latent; 0 is none"),
        Metric("active_units", "1", "higher", "latents whose mean varies between images (variance above 0.01)"),
        Metric("num_latents", "1", "lower", "latents of an image"),
        Metric(
            "beta", "1", "lower", "effective beta: KL weight where both terms are sums over an image, after warm-up"
        ),
        Metric(
            "aggregate_kl", "nat", "lower", "KL of all posteriors together from the prior, a latent: room for ghosts"
        ),
        Metric("sharpness", "1", "higher", "mean gradient of images rebuilt from the mean over that of the images"),
        Metric("prior_sharpness", "1", "higher", "mean gradient of samples of the prior over that of the images"),
        Metric("prior_diversity", "1", "higher", "variance between samples of the prior over that between the images"),
        Metric("checkerboard", "dB", "lower", "power of samples at periods of 2 and 4 pixels over that beside them"),
        Metric("val_reconstruction", "1", "lower", "reconstruction term of the loss, as the write-up validates it"),
        Metric("val_loss", "1", "lower", "the whole loss after warm-up, as the write-up validates it (its ELBO)"),
        Metric("selection", "1", "lower", "which of the two the write-up's program picks its best model by"),
    )
    loss_term_names = ("reconstruction", "kl", "spectral")
    diagnostics = ("mu_absmax", "logvar_max")
    eval_batch_size = 64  # variances between images are taken within a batch

    def __init__(self, config: keys.Config, seed: int) -> None:
        self._config = config
        self._images = images_of(config.data, seed)
        grid = config.data.image_size >> len(config.network.channels)
        self._latent_shape = (config.network.latent_channels, grid, grid)
        self._num_latents = config.network.latent_channels * grid**2
        self._num_pixels = config.data.image_size**2

    def network(self) -> KLAutoencoder:
        return KLAutoencoder(self._config.network)

    def dataset(self, split: Split) -> ImageItems:
        return self._images.items[split]

    def loss_terms(self, network: KLAutoencoder, batch: Tensor, context: StepContext) -> Mapping[str, Tensor]:
        """``batch`` (B, 1, N, N) in [0, 1]; the decoder sees a sample of the posterior."""
        posterior = network.encode(batch)
        context.diagnostic("mu_absmax", posterior.mean.abs().amax())
        context.diagnostic("logvar_max", posterior.logvar.amax())
        if posterior.num_cut is not None:
            context.count_limited(posterior.num_cut)
        rebuilt = network.decode(posterior.sample(context.generator("latents")))
        kl = kl_per_latent(posterior.mean, posterior.logvar)
        if self._config.losses.free_bits is not None:
            context.count_limited(kl < self._config.losses.free_bits)
        return self._terms(batch, rebuilt, kl)

    def evaluate(self, network: KLAutoencoder, batch: Tensor, context: StepContext) -> Mapping[str, Partial]:
        """``batch`` (B, 1, N, N); as many samples of the prior are made beside it."""
        rebuilt, posterior = network(batch)
        resampled = network.decode(posterior.sample(context.generator("latents")))
        made_up = network.decode(_prior_latents(len(batch), self._latent_shape, context))
        kl = kl_per_latent(posterior.mean.double(), posterior.logvar.double())  # fp32 overflows at a logvar of 89
        validated = resampled if self._config.losses.evaluation == "sample" else rebuilt
        terms = self._terms(batch, validated, kl)
        weights = self._config.losses.weights.model_dump()
        on_grid, beside = grid_powers(made_up)
        values = {
            "psnr": psnr_db(batch, rebuilt).mean(),
            "psnr_sampled": psnr_db(batch, resampled).mean(),
            "ssim": ssim(batch, rebuilt).mean(),
            "ssim_sampled": ssim(batch, resampled).mean(),
            "kl_raw": kl.mean(),
            **_between_images(posterior),
            "sharpness_images": sharpness(batch).mean(),
            "sharpness_rebuilt": sharpness(rebuilt).mean(),
            "sharpness_made_up": sharpness(made_up).mean(),
            "diversity_images": diversity(batch),
            "diversity_made_up": diversity(made_up),
            "on_grid": on_grid,
            "beside": beside,
            "val_reconstruction": terms["reconstruction"],
            "val_loss": torch.stack([weights[name] * term.double() for name, term in terms.items()]).sum(),
        }
        return {name: Sum(value.double() * len(batch)) for name, value in values.items()} | {
            "num_images": Sum(torch.tensor(float(len(batch))))
        }

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        means = {name: total / totals["num_images"] for name, total in totals.items()}
        losses = self._config.losses
        averaged = ("psnr", "psnr_sampled", "ssim", "ssim_sampled", "kl_raw", "active_units", "aggregate_kl")
        return {name: means[name] for name in (*averaged, "val_reconstruction", "val_loss")} | {
            **self.constant_figures(),
            "sharpness": means["sharpness_rebuilt"] / means["sharpness_images"],
            "prior_sharpness": means["sharpness_made_up"] / means["sharpness_images"],
            "prior_diversity": means["diversity_made_up"] / means["diversity_images"],
            "selection": means[f"val_{losses.best_by}"],
            "checkerboard": 10.0 * math.log10(means["on_grid"] / means["beside"]),
        }

    def constant_figures(self) -> dict[str, float]:
        """What the config alone says, shown in every evaluation beside what it explains."""
        losses = self._config.losses
        return {
            "free_bits": losses.free_bits or 0.0,
            "num_latents": float(self._num_latents),
            "beta": effective_beta(losses.weights.kl, losses.reduction, self._num_pixels, self._num_latents),
        }

    def baselines(self) -> Sequence[Baseline]:
        """The mean image, and a linear code of the same size; on held-out images."""
        block_size = 2 ** len(self._config.network.channels)
        num_components = self._config.network.latent_channels
        mean = mean_image(self.dataset("train"))
        predictors: list[tuple[str, Literal["floor", "reference"], Callable[[Tensor], Tensor]]] = [
            ("mean_image", "floor", mean.expand_as),
            (
                f"block_pca_{num_components}",
                "reference",
                block_pca(self.dataset("train"), block_size, num_components),
            ),
        ]
        return [Baseline(name, role, self._scores(predict)) for name, role, predict in predictors]

    def data_facts(self) -> Mapping[str, int | float | str]:
        return self._images.facts()

    def samples(self, network: KLAutoencoder, context: StepContext) -> Sequence[Picture]:
        """Held-out images, rebuilt from the mean and from a sample, in one sheet; samples of the prior in another."""
        images = self.dataset("validation").batch(slice(0, NUM_PICTURED)).to(context.device)
        rebuilt, posterior = network(images)
        resampled = network.decode(posterior.sample(context.generator("pictures")))
        shape = (self._config.network.sample_channels or self._latent_shape[0], *self._latent_shape[1:])
        made_up = network.decode(_prior_latents(2 * len(images), shape, context))
        return [
            Picture("rows_original_from_mean_from_sample", sheet([images, rebuilt, resampled])),
            Picture("samples_of_the_prior", sheet(made_up.chunk(2))),
        ]

    def check_data(self) -> Sequence[DataFinding]:
        return self._images.check()

    def _terms(self, images: Tensor, rebuilt: Tensor, kl: Tensor) -> dict[str, Tensor]:
        """The unweighted terms of the loss from the KL of every latent (B, L, n, n)."""
        losses = self._config.losses
        mean_kl = with_free_bits(kl, losses.free_bits)
        terms = reduced(
            self._reconstruct(rebuilt, images), mean_kl, losses.reduction, self._num_pixels, self._num_latents
        )
        return dict(zip(self.loss_term_names, [*terms, spectral_l1(rebuilt, images)], strict=True))

    @cached_property
    def _reconstruct(self) -> Callable[[Tensor, Tensor], Tensor]:
        """The reconstruction per pixel that the config asks for."""
        losses = self._config.losses
        if losses.reconstruction == "mse":
            return squared_error
        if losses.reconstruction == "gaussian":
            return gaussian_nll
        return lambda rebuilt, images: l1_ssim(rebuilt, images, losses.scales)

    def _scores(self, predict: Callable[[Tensor], Tensor]) -> Mapping[str, float]:
        held_out = self.dataset("validation")
        psnr, similarity = 0.0, 0.0
        for images in held_out.chunks():
            predicted = predict(images)
            psnr += float(psnr_db(images, predicted).sum())
            similarity += float(ssim(images, predicted).sum())
        return {"psnr": psnr / len(held_out), "ssim": similarity / len(held_out)}


def _prior_latents(num: int, shape: tuple[int, ...], context: StepContext) -> Tensor:
    """(num, L, n, n) of N(0, 1), L and n from ``shape``."""
    return torch.randn((num, *shape), generator=context.generator("prior"), device=context.device)


def _between_images(posterior: Posterior) -> dict[str, Tensor]:
    """What only shows between images; of a batch of one nothing does."""
    return {
        "active_units": active_units(posterior.mean),
        "aggregate_kl": aggregate_kl(posterior.mean, posterior.logvar),
    }
