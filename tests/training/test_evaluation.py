"""Validation that survives bad batches, says so, and never makes a figure of nothing."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.metrics import read_evals, read_events
from hpcstab.rundir import RunDir, read_json
from hpcstab.stability.random_state import take_random_state
from hpcstab.task import Partial, Sum
from hpcstab.training import Trainer, TrainingResult
from hpcstab.training.evaluation import Evaluation, EvaluationContext, FailedBatch, evaluate
from tests.training.test_gate import same
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

Partials = Mapping[str, Partial]


class Spoiled(ToyTask):
    """``spoil(index of the batch, partials)`` may raise, or change what a validation batch (of 4 items) gives."""

    def __init__(self, config: Config, spoil: Callable[[int, dict[str, Partial]], Partials]) -> None:
        super().__init__(config)
        self.spoil = spoil

    def evaluate(self, network: nn.Module, batch: Any, context: Any) -> Partials:
        starts = self.dataset("validation").inputs[::4]
        (index,) = (i for i, start in enumerate(starts) if torch.equal(start, batch[0][0]))
        return self.spoil(index, dict(super().evaluate(network, batch, context)))


def raising(error: Exception, *batches: int) -> Callable[[int, dict[str, Partial]], Partials]:
    def spoil(index: int, partials: dict[str, Partial]) -> Partials:
        if index in batches:
            raise error
        return partials

    return spoil


def train(root: Path, task: ToyTask, config: Config) -> tuple[RunDir, Trainer, TrainingResult]:
    run, trainer = toy_trainer(root, task, config)
    try:
        return run, trainer, trainer.train()
    finally:
        trainer.records.close()


def evaluated(root: Path, task: ToyTask, max_samples: int | None = None) -> tuple[Evaluation, nn.Module]:
    _, trainer = toy_trainer(root, task, toy_config())
    trainer.records.close()
    context = EvaluationContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))
    return evaluate(task, trainer.network, context, lambda: None, max_samples), trainer.network


def error_of(network: nn.Module, task: ToyTask, items: slice) -> float:
    network.eval()
    validation = task.dataset("validation")
    with torch.no_grad():
        return float((network(validation.inputs[items]) - validation.targets[items]).square().mean())


def found(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] == kind]


def test_non_finite_sums_are_counted_named_and_not_averaged_in(tmp_path: Path) -> None:
    def spoil(index: int, partials: dict[str, Partial]) -> Partials:
        return {**partials, "squared": Sum(torch.tensor(math.inf))} if index == 1 else partials

    task = Spoiled(toy_config(), spoil)
    result, network = evaluated(tmp_path, task)
    failed = FailedBatch(1, ("item4", "item5", "item6", "item7"), "non-finite squared")
    assert (result.num_batches, result.failed, result.empty) == (2, (failed,), False)
    assert result.metrics["error"] == pytest.approx(error_of(network, task, slice(4)), rel=1e-6)


def test_a_batch_that_raises_is_counted_named_and_the_run_goes_on(tmp_path: Path) -> None:
    config = toy_config()
    task = Spoiled(config, raising(ValueError("no lesion\nin this volume"), 0))
    run, trainer, result = train(tmp_path, task, config)
    assert result.state == "completed"
    rows = read_evals(run.evals_csv)
    assert [(row["num_batches"], row["num_failed_batches"]) for row in rows] == [("2", "1")] * 3
    assert float(rows[-1]["error"]) == pytest.approx(error_of(trainer.network, task, slice(4, 8)), rel=1e-6)
    event = found(run, "eval_batch_failed")[-1]
    assert event["step"] == 20
    assert event["data"] == {
        "batch": 0,
        "ids": ["item0", "item1", "item2", "item3"],
        "reason": "ValueError: no lesion",
        "split": "validation",
        "weights": "raw",
        "num_failed": 1,
    }


def test_an_item_that_cannot_be_read_is_a_failed_batch(tmp_path: Path) -> None:
    task = ToyTask(toy_config())
    items = task.dataset("validation")

    class Torn(type(items)):  # type: ignore[misc]
        def __getitem__(self, index: int) -> Any:
            if index == 2:
                raise OSError("scan2.nii: truncated")
            return super().__getitem__(index)

    items.__class__ = Torn
    result, network = evaluated(tmp_path, task)
    assert [(failed.index, failed.reason) for failed in result.failed] == [(0, "OSError: scan2.nii: truncated")]
    items.__class__ = Torn.__base__
    assert result.metrics["error"] == pytest.approx(error_of(network, task, slice(4, 8)), rel=1e-6)


def test_the_same_error_in_every_batch_is_a_bug_and_is_shown_before_training(tmp_path: Path) -> None:
    config = toy_config()
    run, trainer = toy_trainer(tmp_path, Spoiled(config, raising(KeyError("mask"), 0, 1)), config)
    with pytest.raises(KeyError, match="mask") as raised:
        trainer.train()
    trainer.records.close()
    assert raised.value.__notes__ == ["each of 2 validation batches at step 0 raised it"]
    assert any("spoil" in str(entry) for entry in raised.traceback)  # the author's own line
    assert len(found(run, "eval_batch_failed")) == 2
    assert trainer.step == 0


@pytest.mark.parametrize("error", [FloatingPointError("overflow"), torch.linalg.LinAlgError("singular")])
def test_numbers_that_make_every_batch_raise_end_the_run_as_diverged(tmp_path: Path, error: Exception) -> None:
    config = toy_config()
    run, _, result = train(tmp_path, Spoiled(config, raising(error, 0, 1)), config)
    assert result.state == "diverged"
    assert result.reason == (
        f"evaluation at step 10: none of 2 batches was valid; the first: {type(error).__name__}: {error}"
    )
    assert [event["step"] for event in found(run, "eval_empty")] == [0, 10]
    assert read_evals(run.evals_csv) == []
    status = read_json(run.status_json) or {}
    assert (status["best"], status["eval"], status["first_nonfinite_step"]) == (None, None, 10)


def test_a_sick_state_that_makes_every_batch_raise_is_divergence_too(tmp_path: Path) -> None:
    """The task's own assertion about its output is no bug of the task where the statistics are NaN."""

    class Asserts(ToyTask):
        def evaluate(self, network: nn.Module, batch: Any, context: Any) -> Partials:
            assert bool(network(batch[0]).isfinite().all()), "output is not finite"
            return super().evaluate(network, batch, context)

    config = toy_config(network={"batchnorm": True})
    task = Asserts(config)
    _, trainer = toy_trainer(tmp_path, task, config)

    def corrupt() -> None:
        if trainer.step == 10:
            trainer.network.state_dict()["1.running_mean"].fill_(math.nan)

    trainer.stop_requested = corrupt
    result = trainer.train()
    trainer.records.close()
    assert (result.state, "AssertionError" in result.reason) == ("diverged", True)


def test_different_errors_in_all_batches_leave_nothing_to_evaluate(tmp_path: Path) -> None:
    def spoil(index: int, partials: dict[str, Partial]) -> Partials:
        raise (ValueError if index else RuntimeError)("bad")

    config = toy_config()
    run, _, result = train(tmp_path, Spoiled(config, spoil), config)
    assert result.state == "diverged"
    assert read_evals(run.evals_csv) == []


def test_max_eval_samples_takes_the_first(tmp_path: Path) -> None:
    config = toy_config(trainer={"max_eval_samples": 6})
    task = ToyTask(config)
    run, trainer, _ = train(tmp_path, task, config)
    last = read_evals(run.evals_csv)[-1]
    assert last["num_batches"] == "2"
    assert float(last["error"]) == pytest.approx(error_of(trainer.network, task, slice(6)), rel=1e-5)
    more = toy_config(trainer={"max_eval_samples": 1000})
    run, _, _ = train(tmp_path, ToyTask(more), more)
    assert read_evals(run.evals_csv)[-1]["num_failed_batches"] == "0"


def test_weights_and_their_average_are_two_rows_and_best_is_about_the_weights(tmp_path: Path) -> None:
    config = toy_config(trainer={"ema_decay": 0.5})
    task = ToyTask(config)
    run, trainer, _ = train(tmp_path, task, config)
    rows = {(row["step"], row["weights"]): float(row["error"]) for row in read_evals(run.evals_csv)}
    assert sorted(rows) == [(step, weights) for step in ("0", "10", "20") for weights in ("ema", "raw")]
    assert rows["20", "raw"] == pytest.approx(error_of(trainer.network, task, slice(8)), rel=1e-6)
    ema = trainer.runner.gate.ema
    assert ema is not None
    with ema.in_place():
        assert rows["20", "ema"] == pytest.approx(error_of(trainer.network, task, slice(8)), rel=1e-6)
    assert rows["20", "ema"] != rows["20", "raw"]
    status = read_json(run.status_json) or {}
    assert status["eval"] == {"error": rows["20", "raw"]}
    assert status["best"]["value"] == min(value for (_, weights), value in rows.items() if weights == "raw")


class Draws(ToyTask):
    """An evaluation that draws from the global generators and from its context."""

    def evaluate(self, network: nn.Module, batch: Any, context: Any) -> Partials:
        noise = torch.randn(()) + torch.randn((), generator=context.generator("noise"))
        return {"squared": Sum(noise.abs()), "count": Sum(torch.tensor(1.0))}


def test_an_evaluation_disturbs_no_generator_and_is_the_same_on_every_call(tmp_path: Path) -> None:
    task = Draws(toy_config())
    _, trainer = toy_trainer(tmp_path, task, toy_config())
    trainer.records.close()
    errors = []
    for step in (0, 7):
        torch.manual_seed(step)
        before = take_random_state()
        context = EvaluationContext(seed=0, step=step, epoch=0, device=torch.device("cpu"))
        errors.append(evaluate(task, trainer.network, context, lambda: None).metrics["error"])
        assert same(take_random_state(), before)
    assert errors[0] == errors[1]
    other = EvaluationContext(seed=1, step=0, epoch=0, device=torch.device("cpu"))
    assert evaluate(task, trainer.network, other, lambda: None).metrics["error"] != errors[0]


def test_batches_of_an_evaluation_draw_differently(tmp_path: Path) -> None:
    drawn: list[Tensor] = []

    class Watched(Draws):
        def evaluate(self, network: nn.Module, batch: Any, context: Any) -> Partials:
            drawn.append(torch.randn((), generator=context.generator("noise")))
            drawn.append(torch.randn(()))
            return super().evaluate(network, batch, context)

    evaluated(tmp_path, Watched(toy_config()))
    assert len({float(value) for value in drawn}) == 4


def test_a_module_that_was_frozen_in_evaluation_mode_stays_so(tmp_path: Path) -> None:
    """Its author's choice was undone by the first evaluation."""

    class Frozen(ToyTask):
        def network(self) -> nn.Module:
            network: Any = super().network()
            network[1].eval()
            return network  # type: ignore[no-any-return]

    config = toy_config()
    _, trainer, _ = train(tmp_path, Frozen(config), config)
    assert [module.training for module in trainer.network.modules()] == [True, True, False, True]


def test_a_buffer_that_is_infinite_by_design_is_no_finding(tmp_path: Path) -> None:
    """An attention mask of -inf was reported as a sick buffer, and as the run's first non-finite step."""

    class Masked(ToyTask):
        def network(self) -> nn.Module:
            network = super().network()
            network.register_buffer("mask", torch.full((2,), -math.inf))
            return network

    config = toy_config()
    run, _, result = train(tmp_path, Masked(config), config)
    assert result.state == "completed"
    assert found(run, "buffers_nonfinite") == []
    assert (read_json(run.status_json) or {})["first_nonfinite_step"] is None
