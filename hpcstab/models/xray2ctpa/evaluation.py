"""What is measured on held-out volumes. V = volumes, P = patches of each, N = edge of a volume."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from hpcstab.models.xray2ctpa.config import Config
from hpcstab.models.xray2ctpa.data import Patches, Volumes
from hpcstab.models.xray2ctpa.losses import distances
from hpcstab.models.xray2ctpa.network import LatentDiffusion
from hpcstab.models.xray2ctpa.projection import project
from hpcstab.models.xray2ctpa.sampling import sample
from hpcstab.quality import psnr_db, ssim
from hpcstab.stability.numerics import at_least_fp32
from hpcstab.task import Metric, Partial, StepContext, Sum

NUM_BUCKETS = 4
RATIOS = tuple(f"loss_ratio_{index * 100 // NUM_BUCKETS:03d}" for index in range(NUM_BUCKETS))
"""``loss_ratio_025``: of the steps with t / T in [0.25, 0.5)."""
_QUALITY = (
    Metric("psnr", "dB", "higher", "-10 log10(MSE), peak 1 = the volume's own range, of whole volumes, mean over them"),
    Metric("ssim", "1", "higher", "SSIM of whole volumes, 11-voxel Gaussian of sigma 1.5, mean over volumes"),
    Metric("mae", "1", "lower", "mean absolute error of whole volumes in their own range, mean over volumes"),
)
AUTOENCODER_METRICS = _QUALITY
_OF_MEAN = "; of the mean of network.samples_averaged samples"
DIFFUSION_METRICS = (
    *(Metric(metric.name, metric.unit, metric.direction, metric.about + _OF_MEAN) for metric in _QUALITY),
    Metric("psnr_sampled", "dB", "higher", "psnr of a single sample, which pays for its own noise"),
    Metric("projection_mae", "1", "lower", "mean absolute difference of the X-ray and the projected mean, in [0, 1]"),
    *(
        Metric(name, "1", "lower", f"loss over that of predicting zero, t / T from {index / NUM_BUCKETS:g} on")
        for index, name in enumerate(RATIOS)
    ),
    Metric(
        "worst_loss_ratio", "1", "lower", "largest of the loss ratios with t / T >= 0.25; below 1 something is learned"
    ),
)


def evaluate_autoencoder(network: nn.Module, batch: Mapping[str, Tensor], edge: int) -> dict[str, Partial]:
    """The first stage: how well whole volumes are rebuilt."""
    patches = batch["volume"]  # (V, P, 1, p, p, p)
    rebuilt = at_least_fp32(network(patches.flatten(0, 1))[0]).reshape(patches.shape)
    return _quality(whole(rebuilt, edge), whole(patches, edge))


def evaluate_diffusion(
    network: LatentDiffusion, batch: Mapping[str, Tensor], context: StepContext, config: Config
) -> dict[str, Partial]:
    """The second stage: the loss by t against predicting zero, and sampled volumes against true ones."""
    patches, edge = batch["volume"], config.data.volume_size
    flat, places = patches.flatten(0, 1), batch["places"].flatten(0, 1)
    codes = network.code(batch["xray"]).repeat_interleave(patches.shape[1], 0)
    latents = at_least_fp32(network.encode(flat))
    generator = context.generator("evaluation")
    noise = torch.randn(latents.shape, generator=generator, device=context.device)
    partials: dict[str, Partial] = {}
    for bucket, name in enumerate(RATIOS):
        within = torch.rand(len(flat), generator=generator, device=context.device)
        t = ((bucket + within) * (network.schedule.num_timesteps / NUM_BUCKETS)).long()
        predicted = network(network.schedule.noisy(latents, noise, t), t, codes, places)
        target = network.schedule.target(latents, noise, t)
        partials[f"{name}_loss"] = Sum(distances(predicted, target, config.losses.distance).double().sum())
        partials[f"{name}_zero"] = Sum(
            distances(torch.zeros_like(target), target, config.losses.distance).double().sum()
        )
    samples = some_samples(network, codes, places, latents.shape, generator)
    first, mean = (whole(made.reshape(patches.shape), edge) for made in (samples[0], samples.mean(0)))
    truth = whole(patches, edge)
    errors = _mean_absolute_error(films_of(mean, batch), batch["xray"]).double().sum()
    partials["psnr_sampled"] = Sum(psnr_db(first, truth).sum())
    return {**partials, **_quality(mean, truth), "projection_mae": Sum(errors)}


def some_samples(
    network: LatentDiffusion, codes: Tensor, places: Tensor, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    """(samples_averaged, B, 1, p, p, p); what PSNR asks for is their mean, as an estimate of the conditional mean."""
    count = network.keys.samples_averaged
    return torch.stack([sample_patches(network, codes, places, shape, generator) for _ in range(count)])


def sample_patches(
    network: LatentDiffusion, codes: Tensor, places: Tensor, shape: torch.Size, generator: torch.Generator
) -> Tensor:
    """Patches (B, 1, p, p, p) in [0, 1] from noise of ``shape`` (B, C, d, d, d)."""
    noise = torch.randn(shape, generator=generator, device=codes.device)
    latents = sample(network, codes, places, noise, generator)
    return at_least_fp32(network.decode(latents)).clamp(0.0, 1.0)


def films_of(volumes: Tensor, batch: Mapping[str, Tensor]) -> Tensor:
    """Films (V, 1, S, S) of volumes (V, 1, N, N, N) in [0, 1], made as those of the ``batch`` of :class:`Volumes`."""
    low, high = (column.reshape(-1, 1, 1, 1, 1) for column in batch["range_hu"].unbind(1))
    return project(volumes * (high - low) + low, batch["spacing_mm"], batch["xray"].shape[-1])


def whole(patches: Tensor, edge: int) -> Tensor:
    """(V, P, 1, p, p, p) -> (V, 1, N, N, N)."""
    per_axis, size = edge // patches.shape[-1], patches.shape[-1]
    grid = patches.reshape(-1, per_axis, per_axis, per_axis, size, size, size)
    return grid.permute(0, 1, 4, 2, 5, 3, 6).reshape(-1, 1, edge, edge, edge)


def summarize(totals: Mapping[str, float]) -> dict[str, float]:
    """The metrics from the merged sums."""
    names = [metric.name for metric in _QUALITY]
    names += [name for name in ("psnr_sampled", "projection_mae") if name in totals]
    metrics = {name: totals[name] / totals["num_volumes"] for name in names}
    if f"{RATIOS[0]}_loss" in totals:
        metrics |= {name: totals[f"{name}_loss"] / totals[f"{name}_zero"] for name in RATIOS}
        metrics["worst_loss_ratio"] = max(metrics[name] for name in RATIOS[1:])
    return metrics


def mean_patches(train: Patches) -> Tensor:
    """The mean training patch at each place of the volume, (P, 1, p, p, p)."""
    by_place: dict[tuple[float, ...], list[Tensor]] = {}
    for item in train.items:
        by_place.setdefault(tuple(item["places"].flatten().tolist()), []).append(item["volume"])
    return torch.stack([torch.stack(by_place[place]).mean(0) for place in sorted(by_place)])


def scores_of(validation: Volumes, predict: Callable[[Tensor, int], Tensor]) -> dict[str, float]:
    """Quality of what a method answers to each held-out volume, as patches (1, P, 1, p, p, p), and its index."""
    totals: dict[str, float] = {}
    for index, item in enumerate(validation.items):
        patches = item["volume"][None]
        edge = round(patches.shape[1] ** (1 / 3)) * patches.shape[-1]
        volumes = whole(predict(patches, index).clamp(0.0, 1.0), edge)
        partials: dict[str, Partial] = _quality(volumes, whole(patches, edge))
        films = films_of(volumes, {name: value[None] for name, value in item.items()})
        partials["projection_mae"] = Sum(_mean_absolute_error(films, item["xray"][None]).sum())
        for name, part in partials.items():
            totals[name] = totals.get(name, 0.0) + float(part.value)
    return summarize(totals)


def _quality(volumes: Tensor, truth: Tensor) -> dict[str, Partial]:
    return {
        "psnr": Sum(psnr_db(volumes, truth).sum()),
        "ssim": Sum(ssim(volumes, truth).double().sum()),
        "mae": Sum(_mean_absolute_error(volumes, truth).double().sum()),
        "num_volumes": Sum(torch.tensor(float(len(volumes)), device=volumes.device)),
    }


def _mean_absolute_error(values: Tensor, truth: Tensor) -> Tensor:
    """(B, ...) -> (B,)."""
    return (values - truth).abs().flatten(1).mean(1)
