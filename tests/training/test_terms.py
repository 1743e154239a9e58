"""Loss terms on their own: shares of the gradient, terms that go bad and come back slowly, products with zero."""

from __future__ import annotations

import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.errors import ConfigError
from hpcstab.metrics import read_events, read_history, read_rows
from hpcstab.rundir import RunDir
from hpcstab.seeds import keyed_seed
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from tests.training.test_gate import same
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

BAD = 7
RAMP = 5
Change = Callable[[int, dict[str, Tensor]], dict[str, Tensor]]


class Changed(ToyTask):
    """``change(step, terms)`` may spoil terms."""

    def __init__(self, config: Config, change: Change) -> None:
        super().__init__(config)
        self.change = change

    def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> Any:
        return self.change(context.step, dict(super().loss_terms(network, batch, context)))


def bad_value(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {**terms, "size": terms["size"] * math.nan} if step == BAD else terms


def bad_gradient(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    """sqrt(0) is 0, and its gradient infinite."""
    return {**terms, "size": (terms["size"] * 0.0).sqrt()} if step == BAD else terms


def bad_batch(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
    return {name: term * math.nan for name, term in terms.items()} if step == BAD else terms


def config_of(on_bad_term: str = "ramp_again", gate: str = "closed", **changes: Any) -> Config:
    losses = {"weights": {"mse": 1.0, "size": 0.5}, "on_bad_term": on_bad_term, "bad_term_ramp": {"steps": RAMP}}
    return toy_config(losses={**losses, **changes.pop("losses", {})}, stability={"gate": gate}, **changes)


def train(root: Path, task: ToyTask, config: Config) -> tuple[RunDir, Trainer]:
    run, trainer = toy_trainer(root, task, config)
    try:
        assert trainer.train().state == "completed"
        return run, trainer
    finally:
        trainer.records.close()


def found(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] == kind]


def weights_of_size(run: RunDir) -> list[float]:
    """What the weight of `size` was in each step, from loss = mse + weight x size; NaN where that cannot tell."""
    rows = [
        {name: float(row[name]) for name in ("loss", "loss_mse", "loss_size")}
        for row in read_history(run.metrics_csv).values()
    ]
    return [(row["loss"] - row["loss_mse"]) / row["loss_size"] if row["loss_size"] else math.nan for row in rows]


def test_the_share_of_each_term_in_the_gradient(tmp_path: Path) -> None:
    config = config_of("ignore", "open", trainer={"max_steps": 1})
    task = ToyTask(config)
    run, _ = train(tmp_path, task, config)
    torch.manual_seed(keyed_seed(0, "network"))
    network = task.network()
    order = torch.randperm(40, generator=torch.Generator().manual_seed(keyed_seed(0, "permutation", 0)))[:8]
    torch.manual_seed(keyed_seed(0, "step", 0))
    items = task.dataset("train")
    outputs = network(items.inputs[order])
    terms = {"mse": (outputs - items.targets[order]).square().mean(), "size": 0.5 * outputs.square().mean()}
    norms = {}
    for name, term in terms.items():
        gradients = torch.autograd.grad(term, list(network.parameters()), retain_graph=True)
        norms[name] = math.sqrt(sum(float(gradient.double().square().sum()) for gradient in gradients))
    rows = {row["term"]: row for row in read_rows(run.terms_csv)}
    for name, weight in (("mse", 1.0), ("size", 0.5)):
        assert float(rows[name]["weight"]) == weight
        assert float(rows[name]["grad_norm"]) == pytest.approx(norms[name], rel=1e-5)
        assert float(rows[name]["grad_share"]) == pytest.approx(norms[name] / sum(norms.values()), rel=1e-5)


def test_shares_are_measured_on_the_probe_cadence_and_a_term_without_weight_has_none(tmp_path: Path) -> None:
    config = toy_config(
        precision={"dtype": "fp16", "loss_scale": {"initial": 1024.0, "growth_every": 1000}},
        stability={"gate": "closed"},
    )
    run, _ = train(tmp_path, ToyTask(config), config)
    rows = read_rows(run.terms_csv)
    assert [int(row["step"]) for row in rows] == [0, 0, 5, 5, 10, 10, 15, 15, 19, 19]
    history = read_history(run.metrics_csv)
    for row in rows:
        share, norm = float(row["grad_share"]), float(row["grad_norm"])
        assert (share, norm > 0) == ((0.0, False) if row["term"] == "size" else (1.0, True))
        if row["term"] == "mse":  # the only term: its gradient is the step's, without the loss scale
            assert norm == pytest.approx(float(history[int(row["step"])]["grad_norm"]), rel=1e-3)


@pytest.mark.parametrize("micro_batches", [1, 2])
def test_measuring_shares_changes_no_number(tmp_path: Path, micro_batches: int) -> None:
    states = []
    for every in (1, 1000):
        trainer_keys = {"probe_every": {"steps": every}, "micro_batches": micro_batches}
        config = config_of("ignore", "open", trainer=trainer_keys)
        _, trainer = train(tmp_path / str(every), ToyTask(config), config)
        states.append(dict(trainer.network.state_dict()))
    assert same(*states)


@pytest.mark.parametrize("gate", ["open", "step_only", "closed"])
def test_the_first_time_that_a_term_is_not_finite_is_an_event(tmp_path: Path, gate: str) -> None:
    """Also of a term that has no weight: it does no harm yet."""
    config = toy_config(stability={"gate": gate})

    def change(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**terms, "size": terms["size"] / 0.0} if step in (4, 9) else terms

    run, _ = train(tmp_path, Changed(config, change), config)
    (event,) = found(run, "term_nonfinite")
    assert (event["step"], event["data"]["term"], event["data"]["weight"]) == (4, "size", 0.0)
    assert event["nonfinite"] == {"value": "inf"}


@pytest.mark.parametrize(("change", "what"), [(bad_value, "value"), (bad_gradient, "gradient")])
@pytest.mark.parametrize("micro_batches", [1, 2])
def test_a_term_that_went_bad_is_switched_off_and_ramped_again(
    tmp_path: Path, change: Change, what: str, micro_batches: int
) -> None:
    config = config_of(trainer={"micro_batches": micro_batches})
    run, trainer = train(tmp_path, Changed(config, change), config)
    (event,) = found(run, "term_ramped_again")
    assert event["step"] == BAD
    assert event["data"] == {
        "term": "size",
        "nonfinite": what,
        "weight_before": 0.5,
        "weight_next": 0.5 / RAMP,
        "ramp_steps": RAMP,
    }
    assert read_history(run.metrics_csv)[BAD]["outcome"] == "skipped"
    expected = [0.5] * BAD + [0.1, 0.2, 0.3, 0.4, 0.5] + [0.5] * 20
    weights = weights_of_size(run)
    for step in (*range(BAD), *range(BAD + 1, 20)):
        assert weights[step] == pytest.approx(expected[step - (step > BAD)], rel=1e-3), step
    assert trainer.runner.objective.weights(BAD) == {"mse": 1.0, "size": 0.0}


def test_where_all_terms_go_bad_none_is_to_blame(tmp_path: Path) -> None:
    config = config_of()
    run, trainer = train(tmp_path, Changed(config, bad_batch), config)
    assert found(run, "term_ramped_again") == []
    assert trainer.runner.objective.weights(BAD + 1) == {"mse": 1.0, "size": 0.5}


def test_ignore_changes_no_weight(tmp_path: Path) -> None:
    config = config_of("ignore")
    run, _ = train(tmp_path, Changed(config, bad_value), config)
    assert found(run, "term_ramped_again") == []
    assert weights_of_size(run)[BAD + 1 :] == pytest.approx([0.5] * 12, rel=1e-3)


def test_a_fault_of_the_machine_ramps_nothing(tmp_path: Path) -> None:
    seen: list[int] = []

    def once(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        seen.append(step)
        return bad_value(step, terms) if seen.count(BAD) == 1 else terms

    config = config_of()
    run, _ = train(tmp_path, Changed(config, once), config)
    assert len(found(run, "not_reproduced")) == 1
    assert found(run, "term_ramped_again") == []


def test_looking_for_the_bad_term_leaves_nothing_behind(tmp_path: Path) -> None:
    """BatchNorm statistics too: but for the weight, the run is that of one that never saw the batch."""
    states = []
    for on_bad_term in ("ignore", "ramp_again"):
        config = config_of(on_bad_term, network={"batchnorm": True}, trainer={"max_steps": BAD + 1})
        _, trainer = train(tmp_path / on_bad_term, Changed(config, bad_value), config)
        states.append([dict(trainer.network.state_dict()), trainer.optimizer.state_dict()["state"]])
    assert same(*states)


@pytest.mark.parametrize("stop", [7, 8, 9, 10, 13])
def test_resumed_is_uninterrupted_while_a_term_is_ramped(tmp_path: Path, stop: int) -> None:
    config = config_of(network={"batchnorm": True})
    whole, expected = train(tmp_path / "whole", Changed(config, bad_value), config)
    run, trainer = toy_trainer(tmp_path / "parts", Changed(config, bad_value), config)
    trainer.stop_requested = lambda: "SIGUSR2" if trainer.step == stop else None
    assert trainer.train().state == "stopped"
    trainer.records.close()
    second = build_trainer(Changed(config, bad_value), config, run, 0, 2, "error")
    assert second.train().state == "completed"
    second.records.close()
    assert same(dict(second.network.state_dict()), dict(expected.network.state_dict()))
    losses = [[row["loss"] for row in read_history(each.metrics_csv).values()] for each in (run, whole)]
    assert losses[0] == losses[1]
    assert len(found(run, "term_nonfinite")) == len(found(run, "term_ramped_again")) == 1


@pytest.mark.parametrize("gate", ["open", "step_only"])
def test_only_a_closed_gate_can_ramp_again(gate: str) -> None:
    with pytest.raises(ConfigError, match=r"on_bad_term ramp_again needs stability.gate closed"):
        config_of(gate=gate)


@pytest.mark.parametrize("keeps", [False, True])
def test_a_phase_that_is_off_hides_a_bad_term_unless_the_write_up_multiplied_by_zero(
    tmp_path: Path, keeps: bool
) -> None:
    """0 x inf = NaN, in the steps before the phase starts and not only at a configured weight of zero."""
    phases = {"size": {"start": {"steps": 10}, "ramp": {"steps": 4}}}
    losses = {"phases": phases, "multiply_zero_weights": keeps}
    config = config_of("ignore", losses=losses)

    def change(step: int, terms: dict[str, Tensor]) -> dict[str, Tensor]:
        return {**terms, "size": terms["size"] * math.inf} if step == BAD else terms

    run, _ = train(tmp_path, Changed(config, change), config)
    row = read_history(run.metrics_csv)[BAD]
    assert (row["outcome"], row["loss"] == "nan") == (("skipped", True) if keeps else ("applied", False))
    weights = weights_of_size(run)
    assert weights[10:15] == pytest.approx([0.125, 0.25, 0.375, 0.5, 0.5], rel=1e-3)
    assert weights[9] == pytest.approx(0.0, abs=1e-6)


def test_a_ramp_that_begins_again_inside_a_phase_keeps_the_phase(tmp_path: Path) -> None:
    phases = {"size": {"start": {"steps": 4}, "ramp": {"steps": 10}}}
    config = config_of(losses={"phases": phases})
    run, _ = train(tmp_path, Changed(config, bad_value), config)
    weights = weights_of_size(run)
    assert weights[6] == pytest.approx(0.5 * 0.3, rel=1e-3)
    assert weights[8] == pytest.approx(0.5 * 0.5 * 0.2, rel=1e-3)
    assert weights[13] == pytest.approx(0.5 * 1.0, rel=1e-3)
