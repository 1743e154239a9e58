"""xray2ctpa as a task: its figures, its floor, its pictures, the write-up's numbers, and ranks that agree."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcstab.models.xray2ctpa.evaluation import RATIOS, evaluate_diffusion, summarize
from hpcstab.models.xray2ctpa.task import Task
from hpcstab.training.objective import Objective
from tests.models.xray2ctpa.making import (
    make_config,
    make_context,
    make_network,
    make_task,
    training_batch,
    validation_batch,
)
from tests.models.xray2ctpa.test_network import Perfect


def metrics_of(task: Task, network: nn.Module) -> dict[str, float]:
    return metrics_of_volumes(task, network, validation_batch(task))


def metrics_of_volumes(task: Task, network: nn.Module, batch: dict[str, Tensor]) -> dict[str, float]:
    with torch.no_grad():
        partials = task.evaluate(network.eval(), batch, make_context())
    return dict(task.summarize({name: float(part.value) for name, part in partials.items()}))


def test_predicting_zero_has_loss_ratios_of_one_and_the_floors_psnr() -> None:
    """The network as it begins predicts zero: it is the floor, but for the noise that sampling starts from."""
    task = make_task("cured")
    metrics = metrics_of(task, make_network(task))
    assert [metrics[name] for name in (*RATIOS, "worst_loss_ratio")] == pytest.approx([1.0] * 5)
    floor = next(baseline for baseline in task.baselines() if baseline.role == "floor")
    assert floor.name == "zero_prediction"
    assert metrics["psnr"] == pytest.approx(floor.scores["psnr"], abs=0.5)
    assert floor.scores["worst_loss_ratio"] == 1.0


def test_a_perfect_prediction_reaches_the_autoencoder() -> None:
    """Loss ratios of 0, and samples that are what the autoencoder makes of the truth."""
    task = make_task("cured")
    network = make_network(task)
    batch = validation_batch(task)
    network.unet = Perfect(network, network.encode(batch["volume"].flatten(0, 1)))  # type: ignore[assignment]
    metrics = metrics_of(task, network)
    assert max(metrics[name] for name in RATIOS) < 1e-3
    scores = {baseline.name: baseline.scores for baseline in task.baselines()}
    assert metrics["psnr"] == pytest.approx(scores["autoencoder"]["psnr"], abs=0.1)
    assert metrics["projection_mae"] == pytest.approx(scores["autoencoder"]["projection_mae"], abs=0.01)
    assert metrics["psnr_sampled"] == pytest.approx(metrics["psnr"], abs=0.1)


def test_the_mean_of_samples_is_a_better_estimate_than_one() -> None:
    """A network whose samples are the truth and noise of its own: four of them have a quarter of the error."""
    task = make_task("cured", "network.samples_averaged=4")
    network, batch = make_network(task), validation_batch(task)
    noise = torch.Generator().manual_seed(0)
    patches = batch["volume"].flatten(0, 1) * 0.4 + 0.3  # far from 0 and 1, where samples are cut
    network.decode = lambda latents: patches + 0.05 * torch.randn(patches.shape, generator=noise)  # type: ignore[method-assign]
    metrics = metrics_of_volumes(task, network, {**batch, "volume": patches.reshape(batch["volume"].shape)})
    assert metrics["psnr"] - metrics["psnr_sampled"] == pytest.approx(10 * math.log10(4), abs=0.3)


def test_worst_ratio_leaves_the_first_quarter_out() -> None:
    losses = zip(RATIOS, (9.0, 1.0, 1.5, 0.5), strict=True)
    sums = {f"{name}_zero": 2.0 for name in RATIOS} | {f"{name}_loss": value for name, value in losses}
    metrics = summarize(
        {**sums, "psnr": 10.0, "psnr_sampled": 8.0, "ssim": 1.0, "mae": 1.0, "projection_mae": 1.0, "num_volumes": 2.0}
    )
    assert (metrics["worst_loss_ratio"], metrics["loss_ratio_000"], metrics["psnr"]) == (0.75, 4.5, 5.0)


def test_terms_of_the_other_stage_are_zero_and_of_no_weight_are_not_computed() -> None:
    task = make_task("after")
    terms = task.loss_terms(make_network(task), training_batch(task, 0, 1), make_context())
    assert tuple(terms) == task.loss_term_names
    assert {name for name, term in terms.items() if float(term.detach()) != 0.0} == {"denoising"}


def test_the_loss_of_a_batch_is_the_mean_over_its_samples() -> None:
    """So ranks and micro-batches that share a batch train what one that has it whole trains: in fp32, to rounding."""
    task = make_task("cured", "precision.dtype=fp32")
    numbers = (0, 9, 17, 30)

    def gradients(*parts: tuple[int, ...]) -> tuple[float, list[Tensor]]:
        network = make_network(task)
        with torch.no_grad():
            network.unet.output[-1].weight.normal_(std=0.1, generator=torch.Generator().manual_seed(1))  # type: ignore[operator, union-attr]
        total = 0.0
        for part in parts:
            terms = task.loss_terms(network, training_batch(task, *part), make_context(step=5))
            loss = (terms["denoising"] + 0.01 * terms["perceptual"]) / len(parts)
            loss.backward()  # type: ignore[no-untyped-call]
            total += float(loss.detach())
        return total, [value.grad for value in network.parameters() if value.grad is not None]

    whole_loss, whole = gradients(numbers)
    for parts in (((0, 17), (9, 30)), ((0,), (9,), (17,), (30,))):
        loss, shared = gradients(*parts)
        assert loss == pytest.approx(whole_loss, rel=1e-5)
        for ours, theirs in zip(shared, whole, strict=True):
            torch.testing.assert_close(ours, theirs, rtol=1e-3, atol=1e-6)


@pytest.mark.parametrize(
    ("epoch", "expected"), [(0, (1.0, 0.0, 0.0, 0.0)), (5, (1.0, 0.001, 0.0, 0.0)), (20, (1.0, 0.01, 0.001, 0.001))]
)
def test_three_phases_as_in_the_write_up(epoch: int, expected: tuple[float, ...]) -> None:
    weights = Objective(make_config("phased", "full").losses, steps_per_epoch=100, duration_factor=1.0).weights(
        epoch * 100
    )
    assert tuple(weights[name] for name in Task.loss_term_names[2:]) == pytest.approx(expected)


def test_full_is_the_write_up() -> None:
    before, after = (make_config(name, "full") for name in ("before", "after"))
    assert (before.precision.dtype, before.network.amp, before.losses.weights.perceptual) == ("fp16", True, 0.01)
    assert (after.losses.weights.perceptual, after.data.constant, after.network.latent_norm) == (
        0.0,
        "half",
        "codebook_range_clamped",
    )
    assert {config.stability.clip_grad_norm for config in (before, after)} == {1.0}
    assert {config.optimizer.lr for config in (before, after)} == {1e-4}
    assert make_config("before+half_lr", "full").optimizer.lr == 5e-5
    assert (before.trainer.epochs, before.data.batch_size, before.data.patch_size) == (30, 4, 128)
    assert (before.network.num_codes, before.network.latent_channels, before.network.num_timesteps) == (512, 64, 1000)


def test_pictures_show_truth_above_what_was_made() -> None:
    task = make_task("cured")
    with torch.no_grad():
        pictures = task.samples(make_network(task).eval(), make_context())
    assert len(pictures) == 1
    pixels = pictures[0].pixels
    assert (pixels.dtype, pixels.shape) == (np.uint8, (2 * 132, 4 * 132))
    assert pixels[2:130, 2:130].std() > 10, "the film"


def test_the_autoencoder_says_what_it_is_in_the_facts() -> None:
    facts = make_task("cured").data_facts()
    assert facts["autoencoder"] == "fitted before step 0"
    assert facts["autoencoder_fit_steps"] == 4
    scores = {baseline.name: baseline.scores for baseline in make_task("cured").baselines()}
    assert facts["autoencoder_psnr_db"] == pytest.approx(scores["autoencoder"]["psnr"], abs=0.006)


def test_evaluation_looks_at_the_same_noise_whatever_the_weights() -> None:
    task = make_task("before")
    network = make_network(task).eval()
    with torch.no_grad():
        first, second = (
            evaluate_diffusion(network, validation_batch(task), make_context(), task._config)  # type: ignore[arg-type]
            for _ in range(2)
        )
    assert all(torch.equal(first[name].value, second[name].value) for name in first)
