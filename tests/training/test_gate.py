"""The gate inside the trainer: what a refused step leaves behind is nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.checkpoint import read_checkpoint
from hpcstab.metrics import read_events, read_history, read_rows
from hpcstab.rundir import RunDir
from hpcstab.seeds import keyed_seed
from hpcstab.stability.replay.capsule import read_capsule
from hpcstab.task import StepContext
from hpcstab.training import Trainer
from hpcstab.training.replaying import replay_capsule
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

NUM_STEPS = 20


class Faulty(ToyTask):
    """``poison(step, inputs)`` may change a batch before it reaches the network."""

    def __init__(self, config: Config, poison: Callable[[int, Tensor], Tensor]) -> None:
        super().__init__(config)
        self.poison = poison

    def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> Any:
        inputs, targets = batch
        return super().loss_terms(network, (self.poison(context.step, inputs), targets), context)


def nan_at(*steps: int) -> Callable[[int, Tensor], Tensor]:
    """The first sample of a batch is NaN, whenever the step runs."""

    def poison(step: int, inputs: Tensor) -> Tensor:
        return inputs.index_fill(0, torch.tensor([0]), math.nan) if step in steps else inputs

    return poison


def once_at(step: int) -> Callable[[int, Tensor], Tensor]:
    """NaN the first time that the step runs: the machine's fault, not the batch's."""
    seen: list[int] = []

    def poison(at: int, inputs: Tensor) -> Tensor:
        seen.append(at)
        return inputs * math.nan if at == step and seen.count(step) == 1 else inputs

    return poison


def closed(**changes: Any) -> Config:
    stability = {"gate": "closed", **changes.pop("stability", {})}
    return toy_config(network={"batchnorm": True}, stability=stability, **changes)


def trained(root: Path, task: ToyTask, config: Config, lag: int = 2) -> tuple[RunDir, Trainer]:
    run, trainer = toy_trainer(root, task, config)
    trainer.lag = lag
    assert trainer.train().state == "completed"
    trainer.records.close()
    return run, trainer


def bare_loop(config: Config, without: Sequence[int] = ()) -> tuple[nn.Module, torch.optim.Optimizer, list[Tensor]]:
    """Network, optimizer and average of a plain PyTorch loop that never sees the batches of some steps."""
    task = ToyTask(config)
    torch.manual_seed(keyed_seed(0, "network"))
    network = task.network()
    if config.optimizer.name == "sgd":
        optimizer: torch.optim.Optimizer = torch.optim.SGD(
            network.parameters(), lr=0.01, momentum=config.optimizer.momentum, fused=True
        )
    else:
        kind = torch.optim.Adam if config.optimizer.name == "adam" else torch.optim.AdamW
        optimizer = kind(network.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    decay = config.trainer.ema_decay or 0.0
    averages = [parameter.detach().clone() for parameter in network.parameters()]
    items, step = task.dataset("train"), 0
    for epoch in range(NUM_STEPS // 5):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(keyed_seed(0, "permutation", epoch)))
        for chosen in order.split(8):
            if step not in without:
                torch.manual_seed(keyed_seed(0, "step", step))
                optimizer.zero_grad()
                loss = (network(items.inputs[chosen]) - items.targets[chosen]).square().mean()
                loss.backward()  # type: ignore[no-untyped-call]
                optimizer.step()
                for average, parameter in zip(averages, network.parameters(), strict=True):
                    average.add_((parameter.detach() - average) * (1.0 - torch.tensor(decay)))
            step += 1
    return network, optimizer, averages


def same(first: Any, second: Any) -> bool:
    if isinstance(first, Tensor):
        return torch.equal(first, second)
    if isinstance(first, dict):
        return first.keys() == second.keys() and all(same(value, second[key]) for key, value in first.items())
    if isinstance(first, list | tuple):
        return len(first) == len(second) and all(map(same, first, second))
    return bool(first == second)


def assert_equals_bare(trainer: Trainer, config: Config, without: Sequence[int]) -> None:
    network, optimizer, _ = bare_loop(config, without)
    assert same(trainer.network.state_dict(), network.state_dict())
    assert same(trainer.optimizer.state_dict()["state"], optimizer.state_dict()["state"])


@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
@pytest.mark.parametrize("steps", [(0,), (1,), (4, 5), (10,), (3, 9, 19), (19,)])
def test_a_bad_batch_might_as_well_never_have_come(tmp_path: Path, optimizer: str, steps: tuple[int, ...]) -> None:
    """Parameters, optimizer state, BatchNorm statistics: bitwise those of a loop without the batch."""
    config = closed(optimizer={"name": optimizer, "momentum": 0.9})
    run, trainer = trained(tmp_path, Faulty(config, nan_at(*steps)), config)
    assert_equals_bare(trainer, config, steps)
    history = read_history(run.metrics_csv)
    assert [step for step, row in history.items() if row["outcome"] == "skipped"] == list(steps)
    assert len(history) == NUM_STEPS
    assert [int(row["update"]) for row in history.values()] == [
        step - sum(bad < step for bad in steps) for step in range(NUM_STEPS)
    ]


@pytest.mark.parametrize("lag", [0, 1, 2])
def test_the_lag_of_the_host_changes_nothing(tmp_path: Path, lag: int) -> None:
    config = closed()
    run, trainer = trained(tmp_path, Faulty(config, nan_at(4, 11)), config, lag)
    assert_equals_bare(trainer, config, (4, 11))
    held = [int(row["step"]) for row in read_rows(run.metrics_csv) if row["outcome"] == "held"]
    assert sorted(held) == sorted([step + late for step in (4, 11) for late in range(lag + 1)])


def test_what_does_not_come_again_is_the_machines_fault(tmp_path: Path) -> None:
    """The batch is not lost: the result is that of a run without the fault, and the fault is on record."""
    config = closed()
    run, trainer = trained(tmp_path, Faulty(config, once_at(7)), config)
    assert_equals_bare(trainer, config, ())
    (event,) = [event for event in read_events(run.events_jsonl) if event["kind"] == "not_reproduced"]
    assert (event["step"], event["data"]["reason"]) == (7, "nonfinite_loss")
    assert read_history(run.metrics_csv)[7]["outcome"] == "applied"


def test_the_moving_average_moves_only_with_applied_updates(tmp_path: Path) -> None:
    config = closed(trainer={"ema_decay": 0.9})
    _, trainer = trained(tmp_path, Faulty(config, nan_at(6)), config)
    _, _, averages = bare_loop(config, (6,))
    assert trainer.runner.gate.ema is not None
    for (_, ours), theirs in zip(trainer.runner.gate.ema.tensors(), averages, strict=True):
        assert torch.allclose(ours, theirs, rtol=1e-6)


def test_step_only_saves_the_weights_and_not_the_statistics(tmp_path: Path) -> None:
    """What most loops do: the optimizer is skipped, and BatchNorm keeps the NaN."""
    config = closed(stability={"gate": "step_only"})
    run, trainer = toy_trainer(tmp_path, Faulty(config, nan_at(12)), config)
    result = trainer.train()
    trainer.records.close()
    assert all(bool(parameter.isfinite().all()) for parameter in trainer.network.parameters())
    assert not bool(trainer.network.state_dict()["1.running_mean"].isfinite().all())
    assert result.state == "diverged"  # no validation batch is valid with these statistics
    assert read_history(run.metrics_csv)[12]["outcome"] == "skipped"


def test_a_spike_is_refused_in_its_own_step(tmp_path: Path) -> None:
    config = closed()
    run, trainer = toy_trainer(tmp_path, ToyTask(config, lambda step, loss: loss * 1000 if step == 8 else loss), config)
    trainer.runner.gate.limit(grad_norm=100.0)
    trainer.train()
    trainer.records.close()
    assert_equals_bare(trainer, config, (8,))
    (event,) = [event for event in read_events(run.events_jsonl) if event["kind"] == "step_refused"]
    assert event["data"]["reason"] == "spike"
    assert event["data"]["ids"] == list(trainer.batches.ids_of(8))


@pytest.mark.parametrize("gate", ["open", "step_only", "closed"])
def test_the_capsule_holds_the_failing_step(tmp_path: Path, gate: str) -> None:
    """Its state is bitwise what a loop has before that step."""
    config = closed(stability={"gate": gate}, trainer={"max_steps": 10, "nonfinite_budget": 1})
    run, trainer = toy_trainer(tmp_path, Faulty(config, nan_at(7)), config)
    trainer.train()
    trainer.records.close()
    capsule = read_capsule(run.capsule(7))
    network, optimizer, _ = bare_loop(config, range(7, NUM_STEPS))
    assert same(dict(capsule.state["network"]), dict(network.state_dict()))
    assert same(capsule.state["optimizer"]["state"], optimizer.state_dict()["state"])
    assert tuple(capsule.facts["ids"]) == trainer.batches.ids_of(7)
    assert (capsule.facts["step"], capsule.facts["reason"]) == (7, "nonfinite_loss")


def test_micro_batches_add_up(tmp_path: Path) -> None:
    """Without BatchNorm and dropout the gradients of the parts are those of the whole."""

    class Plain(ToyTask):
        def network(self) -> nn.Module:
            return nn.Sequential(nn.Linear(4, 3), nn.Tanh(), nn.Linear(3, 2))

    rows = []
    for count in (1, 4):
        config = toy_config(trainer={"micro_batches": count})
        run, _ = trained(tmp_path / str(count), Plain(config), config)
        rows.append(read_rows(run.metrics_csv))
    for whole, parts in zip(*rows, strict=True):
        for column in ("loss", "grad_norm", "loss_mse", "diag_output_absmax"):
            assert float(parts[column]) == pytest.approx(float(whole[column]), rel=1e-4), column


def test_fp16_overflow_costs_a_step_and_no_batch(tmp_path: Path) -> None:
    """A loss scale that is too large halves until it fits; the batch is trained all the same."""
    config = closed(precision={"dtype": "fp16", "loss_scale": {"initial": 2.0**24, "growth_every": 1000}})
    run, trainer = trained(tmp_path, ToyTask(config), config)
    assert trainer.runner.gate.loss_scale is not None
    assert float(trainer.runner.gate.loss_scale.value) < 2.0**24
    history = read_history(run.metrics_csv)
    assert {row["outcome"] for row in history.values()} == {"applied"}
    assert "rescaled" in [row["outcome"] for row in read_rows(run.metrics_csv)]
    assert not {"first_nonfinite", "capsule_saved"} & {event["kind"] for event in read_events(run.events_jsonl)}


class WithoutGradient(ToyTask):
    """The loss of step 7 is finite and its gradient is not: no loss scale cures that."""

    def loss_terms(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Tensor]:
        terms = super().loss_terms(network, batch, context)
        if context.step != 7:
            return terms
        return {**terms, "mse": terms["mse"] + (network(batch[0]) * 0).square().sum().sqrt()}


@pytest.mark.parametrize("gate", ["step_only", "closed"])
def test_overflows_leave_the_capsules_to_the_first_real_failure(tmp_path: Path, gate: str) -> None:
    """Eight capsules a run: the scale backs off more often than that before step 7, and each time it costs none."""
    config = closed(
        precision={"dtype": "fp16", "loss_scale": {"initial": 2.0**24, "growth_every": 1}}, stability={"gate": gate}
    )
    run, trainer = toy_trainer(tmp_path, WithoutGradient(config), config)
    trainer.train()
    trainer.records.close()
    told = [event for event in read_events(run.events_jsonl) if event["kind"].startswith("capsule")]
    assert [(event["kind"], event["step"]) for event in told] == [("capsule_saved", 7)]
    capsule = read_capsule(run.capsule(7))
    assert capsule.facts["reason"] == "nonfinite_gradient"
    replayed = replay_capsule(WithoutGradient(config), config, capsule, torch.device("cpu"))
    assert replayed.same is True
    assert replayed.finding.root is not None and "SqrtBackward" in str(replayed.finding.as_json()["creator"]["node"])


def test_a_look_at_an_overflow_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = closed(
        precision={"dtype": "fp16", "loss_scale": {"initial": 2.0**24, "growth_every": 2}}, trainer={"ema_decay": 0.5}
    )
    _, looked = trained(tmp_path / "looked", ToyTask(config), config)
    monkeypatch.setattr("hpcstab.training.recovery.keep_failing_step", lambda *_: True)
    _, other = trained(tmp_path / "other", ToyTask(config), config)
    assert same(dict(looked.network.state_dict()), dict(other.network.state_dict()))
    assert same(looked.optimizer.state_dict()["state"], other.optimizer.state_dict()["state"])
    gates = looked.runner.gate, other.runner.gate
    assert same(*[gate.loss_scale.state_dict() for gate in gates if gate.loss_scale])
    assert same(*[gate.ema.state_dict() for gate in gates if gate.ema])


def test_a_checkpoint_remembers_gate_scale_and_average(tmp_path: Path) -> None:
    config = closed(
        precision={"dtype": "fp16", "loss_scale": {"initial": 1024.0, "growth_every": 7}}, trainer={"ema_decay": 0.5}
    )
    run, trainer = trained(tmp_path, ToyTask(config), config)
    state, _ = read_checkpoint(run.checkpoint(NUM_STEPS))
    assert float(state["loss_scale"]["value"]) == 4096.0
    assert int(state["loss_scale"]["num_applied"]) == 6
    assert same(state["ema"], trainer.runner.gate.ema.state_dict() if trainer.runner.gate.ema else None)
