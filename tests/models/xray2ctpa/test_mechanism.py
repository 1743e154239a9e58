"""How the write-up's training fails, end to end at scale tiny: amplified latents in an fp16 image network.

At scale tiny T is 20, and the first sample with t = 19 comes in step 4 of seed 0.
"""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.execute import replay
from hpcstab.judgement import judge
from hpcstab.metrics import read_events, read_history
from hpcstab.models.xray2ctpa.features import FrozenFeatures
from hpcstab.models.xray2ctpa.losses import as_image_latents, perceptual_distances, slices
from hpcstab.models.xray2ctpa.network import LatentDiffusion
from hpcstab.models.xray2ctpa.schedule import NoiseSchedule
from hpcstab.models.xray2ctpa.task import Task
from hpcstab.rundir import RunDir
from hpcstab.task import StepContext
from tests.conftest import MakeRun
from tests.models.xray2ctpa.making import make_context, make_network, make_task, training_batch
from tests.training.test_resume import final_state

FAILS_AT = 4


def nonfinite_steps(run: RunDir) -> list[int]:
    return [step for step, row in read_history(run.metrics_csv).items() if row["loss_finite"] == "0"]


def perceptual_at(t: int) -> Tensor:
    """The write-up's perceptual term of random latents under a prediction of zero, at T = 1000, in fp16."""
    schedule = NoiseSchedule(1000, "eps", zero_terminal_snr=False)
    generator = torch.Generator().manual_seed(0)
    latents, noise = (torch.randn(1, 3, 16, 16, 1, generator=generator) for _ in range(2))
    step = torch.tensor([t])
    rebuilt = schedule.latents(schedule.noisy(latents, noise, step), torch.zeros_like(noise), step)
    pictures = [slices(as_image_latents(each), torch.tensor([0])) for each in (rebuilt, latents)]
    with torch.autocast("cpu", torch.float16):
        return perceptual_distances(pictures[0], pictures[1], FrozenFeatures())


def test_x0_is_finite_in_fp32_and_its_features_are_not_in_fp16() -> None:
    """The last steps fail, those before do not."""
    assert not bool(perceptual_at(999).isfinite())
    assert not bool(perceptual_at(998).isfinite())
    assert bool(perceptual_at(980).isfinite())


def test_before_dies_of_the_step_that_amplifies(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "before")
    assert nonfinite_steps(run)[0] == FAILS_AT
    rows = read_history(run.metrics_csv)
    assert float(rows[FAILS_AT]["diag_amplification"]) > 1000
    assert math.isfinite(float(rows[FAILS_AT]["loss_denoising"])), "the noise itself was predicted well enough"
    assert not math.isfinite(float(rows[FAILS_AT]["loss_perceptual"]))
    assert any(not bool(value.isfinite().all()) for value in final_state(run)["network"].values())


def test_replay_names_the_cast_of_amplified_latents(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "before")
    replayed = replay(run.capsules / f"step_{FAILS_AT:08d}").replay
    root = replayed.finding.root
    assert replayed.same is True
    assert root is not None
    assert root.name == "aten._to_copy.default"
    assert root.place is not None
    assert root.place.file.endswith("xray2ctpa/features.py")
    assert replayed.finding.terms == ("perceptual",)
    assert replayed.advice.verdict == "precision"
    finite = {rerun.name: rerun.measured.finite for rerun in replayed.reruns if not rerun.measured.error}
    assert finite["fp32"]
    assert finite["without"]
    assert not finite["halved"], "a smaller learning rate would not have helped"


@pytest.mark.slow
@pytest.mark.parametrize("fix", ["dataset_epsilon", "latent_clamp", "input_check", "condition_check", "half_lr"])
def test_what_the_write_up_gives_as_cause_is_none(train_run: MakeRun, fix: str) -> None:
    assert nonfinite_steps(train_run("xray2ctpa", f"before+{fix}"))[0] == FAILS_AT


@pytest.mark.slow
@pytest.mark.parametrize("fix", ["v_prediction", "gated_x0", "fp32_islands", "full_precision", "simple_loss"])
def test_each_of_these_alone_keeps_it_finite(train_run: MakeRun, fix: str) -> None:
    run = train_run("xray2ctpa", f"before+{fix}")
    assert nonfinite_steps(run) == []
    assert judge(run).finite.answer == "yes"


@pytest.mark.slow
def test_constant_volumes_are_not_the_cause(train_run: MakeRun) -> None:
    """Two volumes of air change nothing of when it fails: nothing was ever divided by their range."""
    assert nonfinite_steps(train_run("xray2ctpa", "before+constant_volumes+simple_loss")) == []


def test_after_is_finite(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "after")
    assert nonfinite_steps(run) == []
    judgement = judge(run)
    assert judgement.finite.answer == "yes"
    assert judgement.counts["limited"] > 0, "x_0 was cut at +-10"


def test_after_with_constant_volumes_is_masked(train_run: MakeRun) -> None:
    judgement = judge(train_run("xray2ctpa", "after+constant_volumes"))
    assert judgement.unmasked.answer == "no"
    assert judgement.counts["masked"] > 0


def test_after_with_a_broken_weight_reports_zero_five_times_of_five(
    train_run: MakeRun, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The divergence becomes invisible in the loss; the judgement says that it was masked."""
    whole = Task.loss_terms

    def breaking(task: Task, network: nn.Module, batch: Any, context: StepContext) -> Any:
        if context.step == 1:
            assert isinstance(network, LatentDiffusion)
            with torch.no_grad():
                network.unet.input.weight[0] = math.nan
        return whole(task, network, batch, context)

    monkeypatch.setattr(Task, "loss_terms", breaking)
    never = "{steps: 1000}"  # nobody looks at the weights before the end
    cadences = ("stability.health_every", "trainer.evaluate_every", "trainer.checkpoint_every")
    run = train_run("xray2ctpa", "after", settings=[f"{cadence}={never}" for cadence in cadences])
    rows = list(read_history(run.metrics_csv).values())[1:]
    assert [float(row["loss"]) for row in rows] == [0.0] * 5
    assert [float(row["grad_norm"]) for row in rows] == [0.0] * 5
    assert all(int(row["num_masked"]) > 0 for row in rows)
    judgement = judge(run)
    assert judgement.unmasked.answer == "no"
    assert judgement.learned.answer != "yes"
    assert not judgement.stable


@pytest.mark.parametrize("variant", ["after", "after-zero_loss", "after-prediction_check"])
def test_masks_withhold_gradients_and_do_not_wait(variant: str) -> None:
    """With a NaN weight: a loss of 0 and no gradient, each mask alone as well."""
    task = make_task(variant)
    network = make_network(task)
    with torch.no_grad():
        network.unet.input.weight[0] = math.nan
    context = make_context()
    terms = task.loss_terms(network, training_batch(task, 0, 1, 2, 3), context)
    terms["denoising"].backward()
    assert float(terms["denoising"].detach()) == 0.0
    gradients = [parameter.grad for parameter in network.parameters() if parameter.grad is not None]
    assert gradients
    assert all(float(gradient.abs().max()) == 0.0 for gradient in gradients)
    masked, _ = context.counts()
    assert masked is not None
    assert int(masked) >= 1


def test_cured_is_finite_unmasked_and_amplifies_nothing(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "cured")
    judgement = judge(run)
    assert (judgement.finite.answer, judgement.unmasked.answer) == ("yes", "yes")
    assert judgement.counts["limited"] == judgement.counts["masked"] == 0
    rows = read_history(run.metrics_csv).values()
    assert max(float(row["diag_amplification"]) for row in rows) <= 1.0
    assert any(float(row["loss_perceptual"]) > 0 for row in rows), "the term is there, and harmless"
    assert not [event for event in read_events(run.events_jsonl) if event["kind"] == "step_refused"]


@pytest.mark.slow
def test_cured_needs_no_gate(train_run: MakeRun) -> None:
    run = train_run("xray2ctpa", "cured-hardened")
    assert nonfinite_steps(run) == []
    assert judge(run).finite.answer == "yes"
