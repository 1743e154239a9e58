"""wavessm as a task: corrupted images in, restored ones out, judged whole and where they had been painted over."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import ClassVar

import numpy as np
import torch
from torch import Tensor, nn

from hpcstab.config import RunConfig
from hpcstab.data.checks import check_arrays
from hpcstab.models.wavessm import config as keys
from hpcstab.models.wavessm.data import Pairs, pairs_of
from hpcstab.models.wavessm.losses import (
    FrozenFeatures,
    l1,
    perceptual_l1,
    sobel_l1,
    structural_dissimilarity,
    wavelet_l1,
)
from hpcstab.models.wavessm.network import WaveStateSpaceNetwork, largest_magnitudes
from hpcstab.models.wavessm.unet import num_parameters_of, unet_of_size
from hpcstab.quality import masked_mean, psnr_db, ssim, ssim_map
from hpcstab.stability.numerics import fp32_island
from hpcstab.task import Baseline, DataFinding, Metric, Partial, Picture, Split, StepContext, Sum

NUM_PICTURES = 4
PICTURE_EDGE = 192  # pixels, at least


class Task:
    """Blind inpainting of colour images (write-up wavessm)."""

    Config: ClassVar[type[RunConfig]] = keys.Config
    metrics = (
        Metric("psnr", "dB", "higher", "-10 log10(MSE) of each whole image in [0, 1], mean over images"),
        Metric("ssim", "1", "higher", "SSIM of each whole image, 11 x 11 Gaussian of sigma 1.5, mean over images"),
        Metric("masked_psnr", "dB", "higher", "PSNR over the pixels that were painted over, mean over images"),
        Metric("masked_ssim", "1", "higher", "SSIM over the pixels that were painted over, mean over images"),
        Metric("psnr_gain", "dB", "higher", "PSNR above that of the corrupted image"),
        Metric("masked_psnr_gain", "dB", "higher", "PSNR above that of the corrupted image, over its painted pixels"),
        Metric("val_loss", "1", "lower", "loss of held-out images, all terms at their weights after all phases"),
    )
    loss_term_names = ("l1", "perceptual", "ssim", "sobel", "wavelet")
    diagnostics = ("spectrum_absmax", "state_absmax")
    eval_batch_size = 8

    def __init__(self, config: keys.Config, seed: int) -> None:
        self._config = config
        self._sets = pairs_of(config.data, seed)
        self._pairs = self._sets.splits
        self._features = FrozenFeatures()

    def network(self) -> nn.Module:
        keys = self._config.network
        network = WaveStateSpaceNetwork(keys)
        if keys.kind == "unet":
            return unet_of_size(num_parameters_of(network), len(keys.channels), keys.starts_as_identity)
        return network

    def dataset(self, split: Split) -> Pairs:
        return self._pairs[split]

    def loss_terms(self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext) -> Mapping[str, Tensor]:
        """``batch`` of :class:`Pairs` -> the five terms of the restored images."""
        restored, truth = network(batch["corrupted"]), batch["clean"]
        for name, value in largest_magnitudes(network).items():
            context.diagnostic(name, value)
        return self._terms(restored, truth)

    def evaluate(self, network: nn.Module, batch: Mapping[str, Tensor], context: StepContext) -> Mapping[str, Partial]:
        return self._scores(network(batch["corrupted"]), batch)

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        means = {name: total / totals["num_images"] for name, total in totals.items()}
        return {
            **{name: means[name] for name in ("psnr", "ssim", "masked_psnr", "masked_ssim", "val_loss")},
            "psnr_gain": means["psnr"] - means["psnr_before"],
            "masked_psnr_gain": means["masked_psnr"] - means["masked_psnr_before"],
        }

    def baselines(self) -> Sequence[Baseline]:
        """Handing the corrupted image on, which is what a network that learned nothing can do at best."""
        totals: dict[str, float] = {}
        for batch in self._evaluated():
            for name, part in self._scores(batch["corrupted"], batch).items():
                totals[name] = totals.get(name, 0.0) + float(part.value)
        return [Baseline("identity", "floor", self.summarize(totals))]

    def data_facts(self) -> Mapping[str, int | float | str]:
        masks = torch.cat([batch["mask"].mean((1, 2, 3)) for batch in self._evaluated()])
        return {
            **self._sets.facts,
            "corruptions": "seeded strokes, patches and shapes",
            "num_train_images": len(self._pairs["train"]),
            "num_validation_images": len(self._pairs["validation"]),
            "num_evaluated_images": len(masks),
            "mean_masked_share": float(masks.mean()),
        }

    def samples(self, network: nn.Module, context: StepContext) -> Sequence[Picture]:
        """The first held-out images: corrupted, restored, true."""
        pictures = []
        for index in range(min(NUM_PICTURES, len(self._pairs["validation"]))):
            item = self._pairs["validation"][index]
            restored = network(item["corrupted"][None].to(context.device))[0].float().cpu()
            name = f"{self._pairs['validation'].ids[index]}_corrupted_restored_true"
            pictures.append(_row(name, [item["corrupted"], restored, item["clean"]]))
        return pictures

    def check_data(self) -> Sequence[DataFinding]:
        size = self._config.data.image_size
        images = {str(split): pairs.clean_images() for split, pairs in self._pairs.items()}
        return [*self._sets.findings, *check_arrays(images, (size, size, 3), (0.0, 1.0))]

    def _terms(self, restored: Tensor, truth: Tensor) -> dict[str, Tensor]:
        """The five terms, unweighted."""
        perceptual = fp32_island(perceptual_l1) if self._config.losses.fp32_perceptual else perceptual_l1
        return {
            "l1": fp32_island(l1)(restored, truth),
            "perceptual": perceptual(restored, truth, self._features.to(truth.device)),
            "ssim": fp32_island(structural_dissimilarity)(restored, truth),
            "sobel": fp32_island(sobel_l1)(restored, truth),
            "wavelet": fp32_island(wavelet_l1)(restored, truth),
        }

    @fp32_island
    def _scores(self, restored: Tensor, batch: Mapping[str, Tensor]) -> dict[str, Partial]:
        """Sums over images (B, 3, H, W), with those of the corrupted images beside."""
        truth, mask = batch["clean"], batch["mask"]
        weights = self._config.losses.weights.model_dump()
        loss = torch.stack([weights[name] * term.double() for name, term in self._terms(restored, truth).items()]).sum()
        images = restored.clamp(0.0, 1.0)
        values = {
            "psnr": psnr_db(images, truth),
            "ssim": ssim(images, truth),
            "masked_psnr": psnr_db(images, truth, mask),
            "masked_ssim": masked_mean(ssim_map(images, truth), mask),
            "psnr_before": psnr_db(batch["corrupted"], truth),
            "masked_psnr_before": psnr_db(batch["corrupted"], truth, mask),
            "val_loss": loss.expand(len(images)),
            "num_images": torch.ones(len(images)),
        }
        return {name: Sum(value.double().sum()) for name, value in values.items()}

    def _evaluated(self) -> Iterator[dict[str, Tensor]]:
        """Batches of what an evaluation looks at: all held-out pairs, or the first `trainer.max_eval_samples`."""
        pairs = self._pairs["validation"]
        num = min(len(pairs), self._config.trainer.max_eval_samples or len(pairs))
        for first in range(0, num, self.eval_batch_size):
            items = [pairs[index] for index in range(first, min(first + self.eval_batch_size, num))]
            yield torch.utils.data.default_collate(items)


def _row(name: str, images: Sequence[Tensor]) -> Picture:
    """Images (3, H, W) in [0, 1] side by side, enlarged to be seen, a white gap between them."""
    zoom = max(1, PICTURE_EDGE // images[0].shape[2])
    panels = []
    for image in images:
        pixels = (image.clamp(0.0, 1.0) * 255.0).round().to(torch.uint8).permute(1, 2, 0).numpy()
        panels += [pixels.repeat(zoom, 0).repeat(zoom, 1), np.full((pixels.shape[0] * zoom, 4, 3), 255, np.uint8)]
    return Picture(name, np.concatenate(panels[:-1], axis=1))
