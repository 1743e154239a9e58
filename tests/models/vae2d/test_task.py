"""vae2d as a task: what is held out, what is measured, what each key changes; and the full scale is the write-up."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
import torch

from hpcstab.config import leaf_keys, load_experiment, parse_overrides, resolve
from hpcstab.errors import ConfigError
from hpcstab.models.vae2d.config import Config
from hpcstab.models.vae2d.task import Task
from hpcstab.task import Picture
from hpcstab.training.context import TrainingContext

CONTEXT = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))


def make_task(variant: str = "before", scale: str = "tiny", *settings: str) -> Task:
    config = resolve(load_experiment("vae2d"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return Task(config, 0)


def figures(task: Task, seed: int = 0) -> dict[str, float]:
    """The metrics of an untrained network on the held-out films."""
    torch.manual_seed(seed)
    network = task.network().eval()
    with torch.no_grad():
        totals = task.evaluate(network, task.dataset("validation").batch(slice(None)), CONTEXT)
    return dict(task.summarize({name: float(part.value) for name, part in totals.items()}))


def test_every_declared_metric_is_measured() -> None:
    task = make_task()
    assert set(figures(task)) == {metric.name for metric in task.metrics}


def test_figures_add_up_over_batches() -> None:
    """Those of each image; variances between images need them in one batch."""
    task = make_task("after")
    films = task.dataset("validation").batch(slice(None))
    torch.manual_seed(0)
    network = task.network().eval()
    with torch.no_grad():
        whole = task.evaluate(network, films, CONTEXT)
        parts = [task.evaluate(network, films[half], CONTEXT) for half in (slice(0, 3), slice(3, None))]
    for name in ("psnr", "ssim", "kl_raw", "sharpness_rebuilt", "num_images"):
        merged = parts[0][name].merge(parts[1][name])  # type: ignore[arg-type]
        assert float(merged.value) == pytest.approx(float(whole[name].value), rel=1e-5)


@pytest.mark.parametrize(
    ("variant", "scale", "beta", "num_latents", "free_bits"),
    [
        ("round0", "full", 0.001, 4096, 0.0),
        ("before", "full", 64.0, 1024, 0.0),
        ("before", "quick", 64.0, 64, 0.0),
        ("round4", "full", 6.4, 1024, 0.25),
        ("after", "full", 64.0, 512, 0.05),
        ("cured", "full", 1.0, 1024, 0.0),
        ("cured", "quick", 1.0, 64, 0.0),
    ],
)
def test_beta_latents_and_floor_are_shown(
    variant: str, scale: str, beta: float, num_latents: int, free_bits: float
) -> None:
    shown = make_task(variant, scale).constant_figures()
    assert (shown["beta"], shown["num_latents"], shown["free_bits"]) == pytest.approx((beta, num_latents, free_bits))


def test_kl_is_measured_raw_beside_its_floor() -> None:
    shown = figures(make_task("round3"))
    assert shown["free_bits"] == 0.25
    assert shown["kl_raw"] < 0.05  # near-zero heads: nothing is coded yet, and the loss shows 0.25 all the same


def test_a_kl_beyond_fp32_is_measured_all_the_same() -> None:
    """A run whose KL is infinite in fp32 is not called diverged for its evaluation."""
    task = make_task()
    torch.manual_seed(0)
    network = task.network().eval()
    with torch.no_grad():
        network.encoder.to_logvar.bias.fill_(95.0)  # type: ignore[union-attr]
        totals = task.evaluate(network, task.dataset("validation").batch(slice(None)), CONTEXT)
    assert all(bool(part.value.isfinite()) for part in totals.values())
    assert float(totals["kl_raw"].value) > 1e38


def test_validation_from_a_sample_and_best_by() -> None:
    """always_sample changes the validation loss and nothing else; best_by_elbo what selection shows."""
    mean, sampled = (figures(make_task(variant)) for variant in ("before", "before+always_sample"))
    assert {name for name in mean if mean[name] != sampled[name]} == {"val_reconstruction", "val_loss", "selection"}
    assert mean["selection"] == mean["val_loss"]
    by_reconstruction = figures(make_task("before-best_by_elbo"))
    assert by_reconstruction["selection"] == by_reconstruction["val_reconstruction"]


def test_baselines_on_held_out_films() -> None:
    """At the latents of the network a linear code beats the mean film, and says what a network should reach."""
    floor, pca = make_task("before", "quick", "data.num_samples=120").baselines()
    assert (floor.name, floor.role, pca.name, pca.role) == ("mean_image", "floor", "block_pca_16", "reference")
    assert 13.0 < floor.scores["psnr"] < 17.0
    assert pca.scores["psnr"] > floor.scores["psnr"] + 3.0
    assert pca.scores["ssim"] > floor.scores["ssim"]


def test_block_pca_is_exact_at_full_rank() -> None:
    task = make_task("before", "tiny", "network.latent_channels=256", "data.num_samples=100")
    assert task.baselines()[1].scores["psnr"] > 80.0


def test_splits_are_disjoint_and_complete() -> None:
    task = make_task()
    train, validation = task.dataset("train").ids, task.dataset("validation").ids
    assert not set(train) & set(validation)
    assert len(train) + len(validation) == 20
    facts = task.data_facts()
    assert facts["num_distinct_train_items"] == facts["num_train_items"] == 16


def test_diagnostics_and_limits_of_a_step() -> None:
    """Entries that a clamp cuts and latents that lie below the floor are counted."""
    task = make_task("round3")
    torch.manual_seed(0)
    context = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))
    task.loss_terms(task.network(), task.dataset("train").batch(slice(0, 4)), context)
    assert set(context.diagnostics) == {"mu_absmax", "logvar_max"}
    assert float(context.diagnostics["logvar_max"]) < 1.0
    masked, limited = context.counts()
    assert masked is None
    assert limited == 4 * 16 * 3 * 3


def test_loss_is_the_same_for_a_resumed_step() -> None:
    task = make_task()
    torch.manual_seed(0)
    network = task.network()
    batch = task.dataset("train").batch(slice(0, 4))
    first, again = (task.loss_terms(network, batch, CONTEXT) for _ in range(2))
    assert all(torch.equal(first[name], again[name]) for name in first)


def test_pictures_are_two_sheets() -> None:
    task = make_task()
    torch.manual_seed(0)
    with torch.no_grad():
        pictures = task.samples(task.network().eval(), CONTEXT)
    assert [picture.name for picture in pictures] == ["rows_original_from_mean_from_sample", "samples_of_the_prior"]
    tile = 2 * 48 + 4
    assert pictures[0].pixels.shape == (3 * tile, 4 * tile)  # 4 held-out films
    assert pictures[1].pixels.shape == (2 * tile, 4 * tile)
    assert {field.name for field in fields(Picture)} == {"name", "pixels"}
    assert pictures[0].pixels.dtype == np.uint8


def test_hard_coded_sample_channels_cannot_be_decoded() -> None:
    """Round 1.7: 64 channels of noise for a decoder of 16."""
    task = make_task("before-samples_by_latent")
    with torch.no_grad(), pytest.raises(RuntimeError, match="16 channels, but got 64"):
        task.samples(task.network().eval(), CONTEXT)


@pytest.mark.parametrize(
    ("setting", "message"),
    [
        ("data.image_size=72", "make it a multiple of 16"),
        ("data.image_size=32", "below SSIM's window of 11"),
        ("network.channels=[8,4,8]", "needs a multiple of 8"),
    ],
)
def test_sizes_that_do_not_fit_are_refused(setting: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        make_task("after", "tiny", setting)


def test_full_is_the_write_up() -> None:
    """The numbers of the changelog, round by round."""
    experiment = load_experiment("vae2d")
    resolved = {
        variant: dict(leaf_keys(resolve(experiment, variant, "full").config))
        for variant in ("round0", "round1", "round2", "round3", "round5", "round6", "round5+warmup_80")
    }
    assert {str(values["losses.phases.kl.start"]) for values in resolved.values()} == {"1 epochs"}
    ramps = [str(resolved[variant]["losses.phases.kl.ramp"]) for variant in ("round1", "round5", "round5+warmup_80")]
    assert ramps == ["19 epochs", "39 epochs", "79 epochs"]  # a warm-up of 20, 40, 80, whose first epoch has weight 0
    channels = [resolved[variant]["network.latent_channels"] for variant in ("round0", "round1", "round5")]
    assert channels == [64, 16, 8]
    weights = [resolved[variant]["losses.weights.kl"] for variant in ("round0", "round1", "round3", "round5", "round6")]
    assert weights == [0.001, 1.0, 1.0, 0.5, 0.5]
    floors = [resolved[variant]["losses.free_bits"] for variant in ("round2", "round3", "round6")]
    assert floors == [None, 0.25, 0.05]
    assert (resolved["round0"]["stability.clip_grad_norm"], resolved["round1"]["stability.clip_grad_norm"]) == (
        None,
        1.0,
    )
    final = resolved["round6"]
    assert (final["losses.weights.spectral"], final["losses.scales"], final["network.up_convs"]) == (0.1, 3, 2)
    assert (final["data.image_size"], final["data.batch_size"], final["trainer.epochs"]) == (256, 16, 800)
    assert (final["optimizer.lr"], final["scheduler.name"]) == (1e-4, "cosine")
