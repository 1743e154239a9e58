"""wavessm as a task: figures of networks whose figures are known, the floor, and pictures."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.models.wavessm.config import Config
from hpcstab.models.wavessm.task import Task
from hpcstab.training.context import TrainingContext
from hpcstab.training.objective import Objective

CONTEXT = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))


def make_config(variant: str = "before", scale: str = "tiny", *settings: str) -> Config:
    config = resolve(load_experiment("wavessm"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return config


def validation_batch(task: Task) -> dict[str, Tensor]:
    validation = task.dataset("validation")
    batch: dict[str, Tensor] = torch.utils.data.default_collate([validation[i] for i in range(len(validation))])
    return batch


def metrics_of(task: Task, network: nn.Module) -> dict[str, float]:
    partials = task.evaluate(network, validation_batch(task), CONTEXT)
    return dict(task.summarize({name: float(part.value) for name, part in partials.items()}))


class Answer(nn.Module):
    """A 'network' that knows what to answer."""

    def __init__(self, images: Tensor) -> None:
        super().__init__()
        self.images = images

    def forward(self, corrupted: Tensor) -> Tensor:
        return self.images


def test_figures_of_an_error_of_a_hundredth() -> None:
    task = Task(make_config(), 0)
    batch = validation_batch(task)
    nearly = Answer(batch["clean"].clamp(0.01, 0.99) + 0.01 * (1 - 2 * (batch["clean"] > 0.5).float()))
    by_hand = [
        -10 * np.log10(np.mean((image.clamp(0, 1) - truth).double().square().numpy()))
        for image, truth in zip(nearly.images, batch["clean"], strict=True)
    ]
    assert metrics_of(task, nearly)["psnr"] == pytest.approx(np.mean(by_hand), abs=1e-4)


def test_the_truth_has_100_db_and_ssim_1() -> None:
    task = Task(make_config(), 0)
    metrics = metrics_of(task, Answer(validation_batch(task)["clean"]))
    assert (metrics["psnr"], metrics["masked_psnr"]) == (100.0, 100.0)
    assert metrics["ssim"] == pytest.approx(1.0, abs=1e-5)
    assert metrics["masked_ssim"] == pytest.approx(1.0, abs=1e-5)


def test_the_floor_is_the_corrupted_image_by_hand() -> None:
    task = Task(make_config(), 0)
    (floor,) = task.baselines()
    assert (floor.name, floor.role) == ("identity", "floor")
    assert (floor.scores["psnr_gain"], floor.scores["masked_psnr_gain"]) == (0.0, 0.0)
    assert floor.scores == metrics_of(task, nn.Identity())
    whole, masked = [], []
    for index in range(len(task.dataset("validation"))):
        item = task.dataset("validation")[index]
        squared = (item["corrupted"] - item["clean"]).double().square()
        chosen = squared[:, item["mask"][0] != 0]
        whole.append(-10 * np.log10(float(squared.mean())))
        masked.append(-10 * np.log10(float(chosen.mean())))
        assert float(squared.sum()) == pytest.approx(float(chosen.sum()))
    assert floor.scores["psnr"] == pytest.approx(np.mean(whole))
    assert floor.scores["masked_psnr"] == pytest.approx(np.mean(masked))
    assert floor.scores["masked_psnr"] < floor.scores["psnr"]


def test_figures_are_fp32_inside_autocast() -> None:
    task = Task(make_config(), 0)
    with torch.autocast("cpu", torch.bfloat16):
        inside = metrics_of(task, nn.Identity())
    assert inside == metrics_of(task, nn.Identity())


@pytest.mark.parametrize(("variant", "dtype"), [("before", torch.bfloat16), ("cured", torch.float32)])
def test_number_format_of_the_perceptual_term(variant: str, dtype: torch.dtype) -> None:
    task = Task(make_config(variant), 0)
    torch.manual_seed(0)
    network, batch = task.network(), validation_batch(task)
    with torch.autocast("cpu", torch.bfloat16):
        terms = task.loss_terms(network, batch, CONTEXT)
    assert tuple(terms) == task.loss_term_names
    assert all(bool(term.isfinite()) for term in terms.values())
    assert terms["perceptual"].dtype == dtype
    assert {terms[name].dtype for name in ("l1", "ssim", "sobel", "wavelet")} == {torch.float32}


@pytest.mark.parametrize(
    ("variant", "step", "expected"),
    [
        ("before", 999, (1.0, 0.0, 0.0, 0.0, 0.0)),
        ("before", 1000, (1.0, 0.1, 0.1, 0.0, 0.0)),
        ("before", 2999, (1.0, 0.1, 0.1, 0.0, 0.0)),
        ("before", 3999, (1.0, 0.55, 0.55, 0.25, 0.15)),
        ("before", 5000, (1.0, 1.0, 1.0, 0.5, 0.3)),
        ("before+perceptual_ramp", 1000, (1.0, 0.01, 0.1, 0.0, 0.0)),
        ("before+perceptual_ramp", 1999, (1.0, 0.055, 0.1, 0.0, 0.0)),
        ("before+perceptual_ramp", 2999, (1.0, 0.1, 0.1, 0.0, 0.0)),
        ("before+perceptual_ramp", 5000, (1.0, 1.0, 1.0, 0.5, 0.3)),
    ],
)
def test_terms_come_on_as_in_the_write_up(variant: str, step: int, expected: tuple[float, ...]) -> None:
    losses = make_config(variant, "full").losses
    weights = Objective(losses, steps_per_epoch=100, duration_factor=1.0).weights(step)
    assert tuple(weights[name] for name in Task.loss_term_names) == pytest.approx(expected, abs=1e-3)


def test_samples_are_rows_of_three_images() -> None:
    task = Task(make_config("before+identity_start"), 0)
    pictures = task.samples(task.network(), CONTEXT)
    assert len(pictures) == 4
    assert pictures[0].pixels.dtype == np.uint8
    corrupted, restored = pictures[0].pixels[:, :192], pictures[0].pixels[:, 196:388]
    assert pictures[0].pixels.shape == (192, 3 * 192 + 2 * 4, 3)
    assert np.array_equal(corrupted, restored)


def test_full_is_the_write_up() -> None:
    """The numbers of the write-up's two lists of settings, by hand."""
    before, after, followup = (make_config(name, "full") for name in ("before", "after", "followup"))
    batchnorm = after.stability.batchnorm
    assert (batchnorm.momentum, batchnorm.eps, batchnorm.repair) == (0.01, 1e-3, "reset")
    assert str(batchnorm.check_every) == "100 steps"
    assert (batchnorm.check_after_load, batchnorm.check_before_evaluation) == (True, True)
    clips = [config.stability.clip_grad_norm for config in (before, after, followup)]
    assert clips == [1.0, 0.5, 0.25]
    assert [config.optimizer.lr for config in (before, after, followup)] == [2e-4, 2e-4, 1e-4]
    assert [config.losses.fp32_perceptual for config in (before, after, followup)] == [False, False, True]
    assert {config.stability.gate for config in (before, after, followup)} == {"step_only"}
    assert (before.precision.dtype, before.network.channels) == ("fp16", (16, 32, 64, 128))
    assert before.network.num_blocks == (4, 6, 6, 8)
    assert before.network.num_states == 16
    assert before.losses.weights.model_dump() == {
        "l1": 1.0,
        "perceptual": 1.0,
        "ssim": 1.0,
        "sobel": 0.5,
        "wavelet": 0.3,
    }
    optimizer, scheduler, trainer = before.optimizer, before.scheduler, before.trainer
    assert (optimizer.name, optimizer.weight_decay) == ("adamw", 1e-4)
    assert (scheduler.name, str(scheduler.warmup)) == ("cosine", "1000 steps")
    assert optimizer.lr * scheduler.min_lr_fraction == pytest.approx(1e-6)
    assert (trainer.max_steps, str(trainer.evaluate_every), trainer.max_eval_samples) == (33000, "500 steps", 50)
    assert before.data.image_size == 256


def test_validation_loss_is_the_weighted_sum_of_the_terms() -> None:
    task = Task(make_config("before"), 0)
    torch.manual_seed(0)
    network, batch = task.network().eval(), validation_batch(task)
    with torch.no_grad():
        terms = task.loss_terms(network, batch, CONTEXT)
        metrics = metrics_of(task, network)
    weights = task._config.losses.weights.model_dump()
    assert metrics["val_loss"] == pytest.approx(sum(weights[name] * float(terms[name]) for name in terms), rel=1e-5)
    assert set(metrics) == {metric.name for metric in task.metrics}
