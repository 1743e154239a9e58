"""Write-up 2's cascade, and what breaks it: sick statistics, no valid validation batch, the end of the run."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from hpcstab.metrics import read_evals, read_events, read_history
from hpcstab.rundir import RunDir, read_json
from hpcstab.stability.random_state import take_random_state
from hpcstab.training import Trainer, TrainingResult
from hpcstab.training.batchnorm import finish_repairs
from hpcstab.training.build import build_trainer
from hpcstab.training.state import restore_state
from tests.training.test_gate import Faulty, nan_at, same
from tests.training.toy import BATCHNORM, Config, ToyTask, toy_config, toy_trainer

FAULT = 12
FORMS = ("reset", "restore", "reestimate")


class BlindSpot(ToyTask):
    """A branch whose output no loss looks at: at some steps only its statistics become NaN, and every loss is fine."""

    def __init__(self, config: Config, *steps: int) -> None:
        super().__init__(config)
        self.steps = steps

    def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> Any:
        if context.step in self.steps:
            with torch.no_grad():
                network(batch[0] * math.nan)
        return super().loss_terms(network, batch, context)


def config_of(gate: str = "step_only", trainer: dict[str, Any] | None = None, **batchnorm: Any) -> Config:
    return toy_config(
        network={"batchnorm": True},
        trainer=trainer or {},
        stability={"gate": gate, "batchnorm": {**BATCHNORM, **batchnorm}},
    )


def train(root: Path, task: ToyTask, config: Config, **options: Any) -> tuple[RunDir, Trainer, TrainingResult]:
    run, trainer = toy_trainer(root, task, config, **options)
    try:
        return run, trainer, trainer.train()
    finally:
        trainer.records.close()


def resumed(run: RunDir, task: ToyTask, config: Config) -> tuple[Trainer, TrainingResult]:
    trainer = build_trainer(task, config, run, 0, 2, "error")
    try:
        return trainer, trainer.train()
    finally:
        trainer.records.close()


def stopped_before(root: Path, step: int, task: ToyTask, config: Config) -> RunDir:
    run, trainer = toy_trainer(root, task, config)
    trainer.stop_requested = lambda: "SIGUSR2" if trainer.step == step else None
    assert trainer.train().state == "stopped"
    trainer.records.close()
    return run


def found(run: RunDir, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] in kinds]


@pytest.mark.parametrize("gate", ["open", "step_only"])
def test_the_cascade(tmp_path: Path, gate: str) -> None:
    """Every loss and gradient is finite, the weights are, and no validation batch is valid."""
    config = config_of(gate)
    run, trainer, result = train(tmp_path, BlindSpot(config, FAULT), config)
    assert result.state == "diverged"
    assert "none of 2 batches was valid" in result.reason
    assert {row["loss_finite"] + row["grad_finite"] for row in read_history(run.metrics_csv).values()} <= {"11", "00"}
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.network.parameters())
    assert [event["step"] for event in found(run, "buffers_nonfinite", "eval_empty")][-2:] == [20, 20]


@pytest.mark.parametrize("blind", [True, False])
def test_step_only_goes_on_training_over_sick_statistics(tmp_path: Path, blind: bool) -> None:
    """As the loops do that it stands for: only the step whose own loss or gradient is not finite is left out."""
    config = config_of("step_only")
    task = BlindSpot(config, FAULT) if blind else Faulty(config, nan_at(FAULT))
    run, _, result = train(tmp_path, task, config)
    assert result.state == "diverged"
    skipped = [step for step, row in read_history(run.metrics_csv).items() if row["outcome"] == "skipped"]
    assert skipped == ([] if blind else [FAULT])


@pytest.mark.parametrize(
    "protection",
    [
        {"gate": "closed"},
        *({"check_every": {"steps": 5}, "repair": form} for form in FORMS),
        *({"check_before_evaluation": True, "repair": form} for form in FORMS),
    ],
    ids=str,
)
@pytest.mark.parametrize("gate", ["open", "step_only"])
def test_each_protection_alone_breaks_the_cascade(tmp_path: Path, gate: str, protection: dict[str, Any]) -> None:
    config = config_of(**{"gate": gate, **protection})
    run, trainer, result = train(tmp_path, BlindSpot(config, FAULT), config)
    assert result.state == "completed"
    assert all(bool(value.isfinite().all()) for value in trainer.network.state_dict().values())
    assert [(row["step"], row["num_failed_batches"]) for row in read_evals(run.evals_csv)] == [
        (step, "0") for step in ("0", "10", "20")
    ]
    events = found(run, "batchnorm_repaired")
    if protection.get("gate") == "closed":
        assert (events, read_history(run.metrics_csv)[FAULT]["outcome"]) == ([], "skipped")
        return
    (event,) = events
    data = event["data"]
    assert (data["layer"], data["num_nan"], data["num_inf"], data["num_negative"]) == ("1", 6, 0, 0)
    assert (event["step"], data["when"]) == ((14, "step") if "check_every" in protection else (20, "evaluation"))
    assert data["num_masked"] == (protection["repair"] == "reset")
    assert len(found(run, "batchnorm_reestimated")) == (protection["repair"] == "reestimate")
    assert (read_json(run.status_json) or {})["first_nonfinite_step"] == FAULT


def test_repair_none_says_it_and_leaves_it(tmp_path: Path) -> None:
    config = config_of(check_every={"steps": 5}, check_before_evaluation=True)
    run, _, result = train(tmp_path, BlindSpot(config, FAULT), config)
    assert result.state == "diverged"
    assert [(event["step"], event["data"]["when"]) for event in found(run, "batchnorm_sick")] == [
        (14, "step"),
        (19, "step"),
        (20, "evaluation"),
    ]
    assert found(run, "batchnorm_repaired") == []


@pytest.mark.parametrize("repair", FORMS)
def test_a_healthy_run_is_not_touched(tmp_path: Path, repair: str) -> None:
    plain_config = config_of("open")
    plain, plain_trainer, _ = train(tmp_path / "plain", ToyTask(plain_config), plain_config)
    config = config_of("open", check_every={"steps": 1}, check_before_evaluation=True, repair=repair, max_repairs=0)
    run, trainer, result = train(tmp_path / "checked", ToyTask(config), config)
    assert result.state == "completed"
    assert same(dict(trainer.network.state_dict()), dict(plain_trainer.network.state_dict()))
    assert [row["loss"] for row in read_history(run.metrics_csv).values()] == [
        row["loss"] for row in read_history(plain.metrics_csv).values()
    ]
    assert found(run, "batchnorm_sick", "batchnorm_repaired") == []


@pytest.mark.parametrize("repair", FORMS)
def test_a_repair_changes_no_weight(tmp_path: Path, repair: str) -> None:
    """Training does not read the statistics, and the estimate disturbs neither draws nor data position."""
    plain_config = config_of("open")
    _, plain, _ = train(tmp_path / "plain", ToyTask(plain_config), plain_config)
    config = config_of("open", check_every={"steps": 1}, repair=repair)
    # the blind spot draws dropout too: it must be the same in both
    _, trainer, _ = train(tmp_path / "repaired", Corrupted(config, FAULT, math.nan), config)
    assert same(dict(trainer.network.named_parameters()), dict(plain.network.named_parameters()))
    assert same(trainer.optimizer.state_dict()["state"], plain.optimizer.state_dict()["state"])
    batches = "1.num_batches_tracked"
    assert torch.equal(trainer.network.state_dict()[batches], plain.network.state_dict()[batches])


class Corrupted(ToyTask):
    """The machine writes a number into the statistics before a step, once."""

    def __init__(self, config: Config, step: int, value: float) -> None:
        super().__init__(config)
        self.step: int | None = step
        self.value = value

    def loss_terms(self, network: Any, batch: Any, context: Any) -> Any:
        if context.step == self.step:
            self.step = None
            network[1].running_var.fill_(self.value)
        return super().loss_terms(network, batch, context)


@pytest.mark.parametrize("repair", FORMS)
@pytest.mark.parametrize("stop", [14, 15, 17])
def test_resumed_is_uninterrupted_with_repairs(tmp_path: Path, repair: str, stop: int) -> None:
    """The check after step 14 repairs; the estimate comes before step 17, wherever the attempt stopped."""
    config = config_of("open", check_every={"steps": 5}, check_after_load=True, repair=repair, max_repairs=5)
    whole, expected, _ = train(tmp_path / "whole", BlindSpot(config, FAULT), config)
    run = stopped_before(tmp_path / "parts", stop, BlindSpot(config, FAULT), config)
    trainer, result = resumed(run, BlindSpot(config, FAULT), config)
    assert result.state == "completed"
    assert same(dict(trainer.network.state_dict()), dict(expected.network.state_dict()))
    assert trainer.batchnorm.state_dict()["num_repairs"] == 1
    columns = ("step", "weights", "error")
    assert [[row[name] for name in columns] for row in read_evals(run.evals_csv)] == [
        [row[name] for name in columns] for row in read_evals(whole.evals_csv)
    ]
    estimated = {event["step"] for event in found(run, "batchnorm_reestimated")}
    assert estimated == ({17} if repair == "reestimate" else set())


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_the_lag_of_the_host_changes_no_repair(tmp_path: Path, lag: int) -> None:
    config = config_of("open", check_every={"steps": 5}, repair="reestimate")
    _, expected, _ = train(tmp_path / "whole", BlindSpot(config, FAULT), config)
    run, trainer = toy_trainer(tmp_path / "lag", BlindSpot(config, FAULT), config)
    trainer.lag = lag
    trainer.train()
    trainer.records.close()
    assert same(dict(trainer.network.state_dict()), dict(expected.network.state_dict()))
    assert [event["step"] for event in found(run, "batchnorm_reestimated")] == [17]


def test_an_estimate_is_that_of_the_next_batches(tmp_path: Path) -> None:
    """Against float64, from the weights that the run had before step 17."""
    config = config_of("open", check_every={"steps": 5}, repair="reestimate")
    run = stopped_before(tmp_path, 17, BlindSpot(config, FAULT), config)
    trainer = build_trainer(ToyTask(config), config, run, 0, 2, "error")
    restore_state(trainer)
    before = take_random_state()
    finish_repairs(trainer, ends=False)
    assert same(take_random_state(), before)
    (event,) = found(run, "batchnorm_reestimated")
    assert (event["step"], event["data"]["num_clean_passes"]) == (17, 3)
    network: Any = trainer.network
    items = trainer.batches.from_step(17)
    activations = [
        (next(items).batch[0].double() @ network[0].weight.double().T + network[0].bias.double()) for _ in range(3)
    ]
    mean = torch.stack([values.mean(0) for values in activations]).mean(0)
    var = torch.stack([values.var(0) for values in activations]).mean(0)
    torch.testing.assert_close(network[1].running_mean.double(), mean, rtol=1e-5, atol=1e-7)
    torch.testing.assert_close(network[1].running_var.double(), var, rtol=1e-5, atol=1e-7)
    trainer.records.close()


def test_what_still_waits_at_the_end_is_estimated_before_the_last_evaluation(tmp_path: Path) -> None:
    config = config_of("open", check_every={"steps": 20}, repair="reestimate")
    run, trainer, _ = train(tmp_path, BlindSpot(config, 18), config)
    kinds = [(event["step"], event["kind"]) for event in found(run, "batchnorm_repaired", "batchnorm_reestimated")]
    assert kinds == [(19, "batchnorm_repaired"), (20, "batchnorm_reestimated")]
    assert not trainer.batchnorm.waiting


def test_a_negative_variance_is_found_after_a_load(tmp_path: Path) -> None:
    """It is finite, so that its checkpoint passes for healthy; its first evaluation would be NaN."""
    config = config_of("closed", check_after_load=True, repair="reset")
    run = stopped_before(tmp_path, 8, Corrupted(config, 7, -100.0), config)
    _, result = resumed(run, ToyTask(config), config)
    assert result.state == "completed"
    (event,) = found(run, "batchnorm_repaired")
    assert (event["step"], event["data"]["when"], event["data"]["num_negative"]) == (8, "load", 3)
    assert (read_json(run.status_json) or {})["first_nonfinite_step"] is None


@pytest.mark.parametrize("repair", ["restore", "reestimate"])
def test_a_closed_gate_goes_on_where_the_statistics_it_stood_on_can_be_repaired(tmp_path: Path, repair: str) -> None:
    """Without a repair there is nothing to go back to: the state before the step is sick already."""
    config = config_of("closed", check_every={"steps": 5}, repair=repair)
    plain = config_of("closed")
    for which, expected in ((plain, "diverged"), (config, "completed")):
        run, trainer = toy_trainer(tmp_path / expected, ToyTask(which), which)

        def corrupt(trainer: Trainer = trainer) -> None:
            if trainer.step == 8:
                trainer.network.state_dict()["1.running_mean"].fill_(math.nan)

        trainer.stop_requested = corrupt
        assert trainer.train().state == expected
        trainer.records.close()
    (event,) = found(run, "batchnorm_repaired")
    assert event["data"]["when"] == "refusal"
    assert len(read_history(run.metrics_csv)) == 20


@pytest.mark.parametrize("repair", FORMS)
def test_frequent_repairs_end_the_run_as_halted(tmp_path: Path, repair: str) -> None:
    config = config_of(check_every={"steps": 2}, repair=repair, max_repairs=2)
    run, trainer, result = train(tmp_path, BlindSpot(config, *range(3, 20)), config)
    assert result.state == "halted"
    assert "more than stability.batchnorm.max_repairs 2; last 1" in result.reason
    assert [event["data"]["reason"] for event in found(run, "halted")] == [result.reason]
    assert (read_json(run.status_json) or {})["state"] == "halted"
    assert trainer.step == 10  # the third check, after step 7, and the steps that were under way
    assert list(read_history(run.metrics_csv)) == list(range(10))


def test_without_a_clean_batch_there_is_no_estimate_and_it_is_said(tmp_path: Path) -> None:
    class NeverClean(BlindSpot):
        def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> Any:
            inputs, targets = batch
            trains = torch.is_grad_enabled()
            return super().loss_terms(network, (inputs if trains else inputs * math.nan, targets), context)

    config = config_of(check_before_evaluation=True, repair="reestimate", trainer={"max_steps": 15})
    run, _, result = train(tmp_path, NeverClean(config, 9, 14), config)
    assert [event["step"] for event in found(run, "batchnorm_not_reestimated")] == [10, 15]
    assert result.state == "completed"  # with the statistics of the last passed check


@pytest.mark.parametrize("gate", ["open", "closed"])
def test_a_check_on_a_step_that_had_to_run_again_is_read(tmp_path: Path, gate: str) -> None:
    """The closed gate's second run of a step did not look at its health check."""

    class Once(ToyTask):
        left = 2

        def loss_terms(self, network: Any, batch: Any, context: Any) -> Any:
            self.left -= context.step == 9
            if context.step == 9 and self.left == 0:
                network[1].running_var.fill_(-1.0)
            terms = dict(super().loss_terms(network, batch, context))
            return {**terms, "mse": terms["mse"] * math.nan} if context.step == 9 and self.left == 1 else terms

    config = config_of(gate, check_every={"steps": 10}, repair="restore")
    run, _, _ = train(tmp_path, Once(config), config)
    assert [event["step"] for event in found(run, "batchnorm_repaired")] == [9]
