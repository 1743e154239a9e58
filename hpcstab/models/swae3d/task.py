"""swae3d as a task: blocks in, blocks out, judged on whole held-out volumes."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cached_property
from typing import ClassVar, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from hpcstab.config import RunConfig
from hpcstab.data.blocks import from_blocks, to_blocks
from hpcstab.data.checks import num_distinct
from hpcstab.models.swae3d import codecs
from hpcstab.models.swae3d import config as keys
from hpcstab.models.swae3d.data import (
    BlockItems,
    VolumeItems,
    block_pca,
    mean_block,
    training_blocks,
    whole_volumes,
)
from hpcstab.models.swae3d.losses import sliced_wasserstein, unit_directions
from hpcstab.models.swae3d.network import SlicedWassersteinAutoencoder
from hpcstab.models.swae3d.volumes import Volume, volumes_of
from hpcstab.stability.numerics import at_least_fp32
from hpcstab.task import Baseline, DataFinding, Maximum, Metric, Partial, Picture, Split, StepContext, Sum

NUM_PICTURES = 2
PICTURE_ZOOM = 4
_BITS = 32  # of a float32 value, in the volume and in the code: no entropy coding


class Task:
    """The sliced-Wasserstein autoencoder on volumes of functions or of real fields (write-up swae3d)."""

    Config: ClassVar[type[RunConfig]] = keys.Config
    metrics = (
        Metric("psnr", "dB", "higher", "20 log10(max - min) - 10 log10(MSE) of each whole volume, mean over volumes"),
        Metric("mse", "1", "lower", "mean squared error of whole volumes in the unit of the data, mean over volumes"),
        Metric("max_error", "1", "lower", "largest absolute error of any voxel of any volume"),
        Metric("ratio", "1", "higher", "bytes of a block over bytes of its code, float32 both, weights not counted"),
        Metric("bits_per_value", "bit", "lower", "bits of code a voxel"),
    )
    loss_term_names = ("mse", "sliced_wasserstein")
    diagnostics = ()
    joins_samples = ("the sliced Wasserstein distance",)

    def __init__(self, config: keys.Config, seed: int) -> None:
        self._config = config
        self._volumes = volumes_of(config, seed)
        self.eval_batch_size = 1 if config.data.source == "real" else 4  # whole volumes; real ones differ in shape

    def network(self) -> nn.Module:
        network = self._config.network
        return SlicedWassersteinAutoencoder(
            normalization=network.normalization,
            gdn_init=network.gdn_init,
            gdn_beta=network.gdn_beta,
            conv_init=network.conv_init,
            latent_dim=network.latent_dim,
            channels=network.channels,
            block_size=network.block_size,
        )

    def dataset(self, split: Split) -> BlockItems | VolumeItems:
        return self._training if split == "train" else self._validation

    def loss_terms(self, network: nn.Module, batch: Tensor, context: StepContext) -> Mapping[str, Tensor]:
        """``batch`` (B, 1, b, b, b) -> mean squared error and sliced-Wasserstein distance of the latents."""
        reconstruction, latents = network(batch)
        generator = context.generator("sliced_wasserstein")
        directions = unit_directions(self._config.losses.num_projections, latents.shape[1], generator, latents.device)
        prior = torch.randn(latents.shape, generator=generator, device=latents.device)
        latents = at_least_fp32(latents)
        return {
            "mse": nn.functional.mse_loss(at_least_fp32(reconstruction), batch),
            "sliced_wasserstein": sliced_wasserstein(latents, prior.to(latents), directions.to(latents)),
        }

    def evaluate(self, network: nn.Module, batch: Tensor, context: StepContext) -> Mapping[str, Partial]:
        """``batch`` (V, N, 1, b, b, b): whole volumes as blocks."""
        rebuilt = at_least_fp32(network(batch.flatten(0, 1))[0])
        return self._errors(rebuilt.reshape(batch.shape), batch)

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        num_volumes = totals["num_volumes"]
        network = self._config.network
        ratio = network.block_size**3 / network.latent_dim
        return {
            "psnr": totals["psnr_db"] / num_volumes,
            "mse": totals["mse"] / num_volumes,
            "max_error": totals["max_error"],
            "ratio": ratio,
            "bits_per_value": _BITS / ratio,
        }

    def baselines(self) -> Sequence[Baseline]:
        """The mean, block PCA at the network's own code size, and the codecs at its ratio where they are installed."""
        num_components = self._config.network.latent_dim
        predictors: list[tuple[str, Literal["floor", "reference"], Callable[[Tensor], Tensor]]] = [
            ("mean_predictor", "floor", lambda blocks: mean_block(self._training).expand_as(blocks)),
            (f"block_pca_{num_components}", "reference", block_pca(self._training, num_components)),
        ]
        linear = [
            Baseline(name, role, self._scores([predict(blocks) for blocks in self._validation.volumes]))
            for name, role, predict in predictors
        ]
        return [*linear, *(self._codec_baselines() if codecs.available() else ())]

    def data_facts(self) -> Mapping[str, int | float | str]:
        return {
            **self._volumes.provenance(),
            "num_train_volumes": len(list(self._volumes.volumes("train"))),
            "num_distinct_train_volumes": num_distinct(self._volumes.volumes("train")),
            "num_train_items": len(self._training),
            "num_validation_volumes": len(self._validation),
            "num_leaked_volumes": sum(finding.count for finding in self._leaks()),
            "codecs": codecs.version() if codecs.available() else "not installed (extra codecs), so not shown beside",
        }

    def samples(self, network: nn.Module, context: StepContext) -> Sequence[Picture]:
        """The middle slice of the first held-out volumes: original, reconstruction, absolute error."""
        pictures = []
        for index in range(min(NUM_PICTURES, len(self._validation))):
            blocks = self._validation[index].to(context.device)
            shape = self._validation.shapes[index]
            original = self._volumes.restore(blocks, shape)
            rebuilt = self._volumes.restore(network(blocks)[0], shape)
            name = f"{self._validation.ids[index]}_original_reconstruction_error"
            pictures.append(Picture(name, _row_of_slices(original, rebuilt)))
        return pictures

    def check_data(self) -> Sequence[DataFinding]:
        return self._volumes.check()

    @cached_property
    def _training(self) -> BlockItems:
        return training_blocks(self._volumes)

    @cached_property
    def _validation(self) -> VolumeItems:
        return whole_volumes(self._volumes)

    def _leaks(self) -> list[DataFinding]:
        return [finding for finding in self.check_data() if finding.kind == "duplicate" and "leak" in finding.message]

    def _codec_baselines(self) -> Iterator[Baseline]:
        """A codec that finds no setting within the budget for some volume (its header is too large) is left out."""
        network = self._config.network
        for codec in codecs.CODECS:
            rebuilt = []
            for blocks, shape in zip(self._validation.volumes, self._validation.shapes, strict=True):
                volume = from_blocks(blocks.numpy(), shape)
                num_bytes = volume.nbytes * network.latent_dim // network.block_size**3
                found = codecs.rebuild(codec, volume, num_bytes)
                if found is None:
                    break
                rebuilt.append(torch.from_numpy(to_blocks(found, network.block_size)))
            else:
                yield Baseline(codec, "reference", self._scores(rebuilt))

    def _scores(self, rebuilt: Sequence[Tensor]) -> Mapping[str, float]:
        """``rebuilt``: for each held-out volume its blocks (N, 1, b, b, b) as a method gives them."""
        totals: dict[str, Partial] = {}
        for blocks, answer in zip(self._validation.volumes, rebuilt, strict=True):
            errors = self._errors(answer[None], blocks[None])
            totals = {name: totals[name].merge(part) if name in totals else part for name, part in errors.items()}  # type: ignore[arg-type]
        scores = self.summarize({name: float(partial.value) for name, partial in totals.items()})
        return {name: scores[name] for name in ("psnr", "mse", "max_error")}

    def _errors(self, rebuilt: Tensor, batch: Tensor) -> dict[str, Partial]:
        """Errors of whole volumes (V, N, 1, b, b, b) in the data's unit; the peak of PSNR is each one's max - min."""
        low, high = self._volumes.training_range
        unit = (high - low) / 2.0  # scaled blocks -> the volumes' own unit
        volumes, answers = batch.flatten(1) * unit, rebuilt.flatten(1) * unit
        squared = (answers - volumes).double().square().mean(1)
        peak = (volumes.amax(1) - volumes.amin(1)).double()
        psnr_db = 20.0 * torch.log10(peak) - 10.0 * torch.log10(squared)
        return {
            "psnr_db": Sum(psnr_db.sum()),
            "mse": Sum(squared.sum()),
            "max_error": Maximum((answers - volumes).abs().max()),
            "num_volumes": Sum(torch.tensor(float(len(batch)))),
        }


def _row_of_slices(original: Volume, rebuilt: Volume) -> NDArray[np.uint8]:
    """uint8 picture of three slices through the middle of the shortest axis.

    Grey spans the original's range, in the error half of it.
    """
    low, high = float(original.min()), float(original.max())
    across = min((2, 1, 0), key=lambda axis: original.shape[axis])
    middle = original.shape[across] // 2
    panels = [volume.take(middle, axis=across) for volume in (original, rebuilt)]
    scaled = [(panel - low) / (high - low) for panel in panels]
    scaled.append(np.abs(panels[1] - panels[0]) / ((high - low) / 2.0))
    grey = [
        (np.clip(panel, 0.0, 1.0) * 255).astype(np.uint8).repeat(PICTURE_ZOOM, 0).repeat(PICTURE_ZOOM, 1)
        for panel in scaled
    ]
    gap = np.full((grey[0].shape[0], PICTURE_ZOOM), 255, np.uint8)
    return np.concatenate([grey[0], gap, grey[1], gap, grey[2]], axis=1)
