"""The line: same numbers as a bare loop, every step one row, divergence as a result."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.config import FailureCondition
from hpcstab.errors import ConfigError
from hpcstab.judgement import judge
from hpcstab.metrics import METRICS_COLUMNS, read_events, read_header, read_rows
from hpcstab.rundir import RunDir, read_json
from hpcstab.seeds import keyed_seed
from hpcstab.training import Trainer, TrainingResult
from tests.training.toy import BATCHNORM, ToyTask, toy_config, toy_trainer


def train(root: Path, task: ToyTask, config: Any, **options: Any) -> tuple[RunDir, Trainer, TrainingResult]:
    run, trainer = toy_trainer(root, task, config, **options)
    try:
        return run, trainer, trainer.train()
    finally:
        trainer.records.close()


def nan_from(first: int, last: int = 10**9) -> Any:
    return lambda step, loss: loss * math.nan if first <= step <= last else loss


def events(run: RunDir) -> list[str]:
    return [event["kind"] for event in read_events(run.events_jsonl)]


@pytest.mark.parametrize("clip", [None, 0.05])
@pytest.mark.parametrize("optimizer", ["adam", "adamw", "sgd"])
def test_numbers_are_those_of_a_bare_loop(tmp_path: Path, optimizer: str, clip: float | None) -> None:
    """The open gate adds nothing: parameters are bitwise those of a plain PyTorch loop; with clipping to rounding,
    since it happens inside the optimizer's kernel."""
    config = toy_config(
        # a bias before BatchNorm has a gradient of pure rounding, which Adam blows up to full size
        network={"batchnorm": clip is None},
        optimizer={"name": optimizer, "momentum": 0.5},
        stability={"clip_grad_norm": clip},
    )
    task = ToyTask(config)
    _, trainer, _ = train(tmp_path, task, config)

    torch.manual_seed(keyed_seed(0, "network"))
    network = task.network()
    if optimizer == "sgd":
        bare: torch.optim.Optimizer = torch.optim.SGD(network.parameters(), lr=0.01, momentum=0.5, fused=True)
    else:
        kind = torch.optim.Adam if optimizer == "adam" else torch.optim.AdamW
        bare = kind(network.parameters(), lr=0.01, weight_decay=0.0, fused=True)
    items, step = task.dataset("train"), 0
    for epoch in range(4):
        order = torch.randperm(40, generator=torch.Generator().manual_seed(keyed_seed(0, "permutation", epoch)))
        for chosen in order.split(8):
            torch.manual_seed(keyed_seed(0, "step", step))
            loss = (network(items.inputs[chosen]) - items.targets[chosen]).square().mean()
            bare.zero_grad()
            loss.backward()  # type: ignore[no-untyped-call]
            if clip is not None:
                torch.nn.utils.clip_grad_norm_(network.parameters(), clip)
            bare.step()
            step += 1
    assert step == 20
    ours, theirs = trainer.network.state_dict(), network.state_dict()
    same = torch.equal if clip is None else lambda a, b: torch.allclose(a, b, rtol=1e-5, atol=1e-7)
    assert all(same(ours[name], theirs[name]) for name in theirs)


def test_every_step_is_one_row_with_the_declared_columns(tmp_path: Path) -> None:
    config = toy_config(stability={"clip_grad_norm": 0.1})
    run, _, result = train(tmp_path, ToyTask(config), config)
    assert read_header(run.metrics_csv) == (*METRICS_COLUMNS, "loss_mse", "loss_size", "diag_output_absmax")
    rows = read_rows(run.metrics_csv)
    assert [int(row["step"]) for row in rows] == list(range(20))
    assert [int(row["epoch"]) for row in rows] == [step // 5 for step in range(20)]
    assert {row["outcome"] for row in rows} == {"applied"}
    for row in rows:
        norm, scale = float(row["grad_norm"]), float(row["clip_scale"])
        assert scale == pytest.approx(min(1.0, 0.1 / (norm + 1e-6)), rel=1e-5)
        assert float(row["loss"]) == pytest.approx(float(row["loss_mse"]))  # the weight of `size` is 0
    assert (result.state, result.steps_gained) == ("completed", 20)
    assert [int(row["step"]) for row in read_rows(run.evals_csv)] == [0, 10, 20]
    probed = sorted({int(row["step"]) for row in read_rows(run.probes_csv)})
    assert probed == [0, 5, 10, 15, 19]
    assert {row["module"] for row in read_rows(run.probes_csv)} == {"0", "2"}


def test_same_seed_same_numbers_whatever_the_cadence_and_workers(tmp_path: Path) -> None:
    def losses(**changes: Any) -> list[str]:
        config = toy_config(**changes)
        run, _, _ = train(tmp_path, ToyTask(config), config)
        return [row["loss"] for row in read_rows(run.metrics_csv)]

    plain = losses()
    assert losses() == plain
    assert losses(trainer={"evaluate_every": {"steps": 3}, "probe_every": {"steps": 1}}) == plain
    assert losses(data={"num_workers": 1}) == plain


def test_a_streak_of_non_finite_losses_is_divergence_and_a_result(tmp_path: Path) -> None:
    config = toy_config()
    run, _, result = train(tmp_path, ToyTask(config, nan_from(4)), config)
    assert result == TrainingResult("diverged", 7, "loss non-finite in 3 steps in a row")
    status = read_json(run.status_json)
    assert status is not None
    assert (status["state"], status["first_nonfinite_step"], status["first_failure_step"]) == ("diverged", 4, 4)
    assert status["last"]["loss"] == "nan"  # spelled, since JSON has no NaN
    assert events(run) == [
        "train_start",
        "capsule_saved",
        "term_nonfinite",
        "first_nonfinite",
        "first_failure",
        "term_nonfinite",  # the other one, a step later
        "diverged",
        "checkpoint_saved",
        "train_end",
    ]
    assert judge(run).finite.answer == "no"


def test_a_poisoned_state_ends_the_run_at_the_next_evaluation(tmp_path: Path) -> None:
    """With a budget that is never used up, the check of the parameters finds it."""
    config = toy_config(trainer={"nonfinite_budget": 100})
    run, _, result = train(tmp_path, ToyTask(config, nan_from(4, 4)), config)
    assert result.state == "diverged"
    assert "4 parameter tensors non-finite" in result.reason
    assert "state_nonfinite" in events(run)
    assert len(read_rows(run.metrics_csv)) == 10  # evaluations come every 10 steps


@pytest.mark.parametrize("gate", ["open", "step_only"])
def test_non_finite_buffers_alone_are_an_event_of_their_step_and_the_run_goes_on(tmp_path: Path, gate: str) -> None:
    """They were dated to the next look at the state, an evaluation later."""
    config = toy_config(network={"batchnorm": True}, trainer={"max_steps": 20}, stability={"gate": gate})
    task = ToyTask(config)
    run, trainer = toy_trainer(tmp_path, task, config)

    original = task.loss_terms

    def poison(network: Any, batch: Any, context: Any) -> Any:
        if context.step == 5:
            network[1].running_mean.fill_(math.nan)
        return original(network, batch, context)

    task.loss_terms = poison  # type: ignore[method-assign]
    result = trainer.train()
    trainer.records.close()
    found = [event for event in read_events(run.events_jsonl) if event["kind"] == "buffers_nonfinite"]
    assert [(event["step"], event["data"]["names"]) for event in found[:2]] == [
        (5, ["1.running_mean"]),
        (10, ["1.running_mean"]),
    ]
    assert all(row["loss_finite"] == "1" for row in read_rows(run.metrics_csv))
    status = read_json(run.status_json)
    assert status is not None
    assert status["first_nonfinite_step"] == 5
    # with NaN statistics no evaluation batch is valid: the cascade of write-up 2
    assert result.state == "diverged"
    assert "none of 2 batches was valid" in result.reason


def test_failure_conditions_set_the_failure_step_and_do_not_end_the_run(tmp_path: Path) -> None:
    config = toy_config()
    conditions = [FailureCondition(column="loss_mse", above=100.0)]
    task = ToyTask(config, lambda step, loss: loss + (1000.0 if step == 6 else 0.0))
    run, _, result = train(tmp_path, task, config, failure=conditions)
    status = read_json(run.status_json)
    assert status is not None
    assert (result.state, status["first_failure_step"], status["first_nonfinite_step"]) == ("completed", 6, None)


def test_a_failure_condition_on_no_column_is_refused(tmp_path: Path) -> None:
    config = toy_config()
    with pytest.raises(ConfigError, match="'loss_kl' is no column"):
        toy_trainer(tmp_path, ToyTask(config), config, [FailureCondition(column="loss_kl", above=1.0)])


def test_a_stop_request_ends_at_a_step_boundary_and_leaves_the_run_open(tmp_path: Path) -> None:
    asked = iter([None] * 7 + ["SIGTERM"])
    config = toy_config()
    run, _, result = train(tmp_path, ToyTask(config), config, stop_requested=lambda: next(asked))
    assert (result.state, result.reason, result.steps_gained) == ("stopped", "SIGTERM", 7)
    status = read_json(run.status_json)
    assert status is not None
    assert status["state"] == "running"  # readers derive preempted or cancelled
    assert len(read_rows(run.metrics_csv)) == 7


def test_bf16_trains_in_autocast_with_fp32_parameters(tmp_path: Path) -> None:
    config = toy_config(precision={"dtype": "bf16"})
    seen: list[torch.dtype] = []
    task = ToyTask(config)
    original = task.loss_terms

    def spy(network: Any, batch: Any, context: Any) -> Any:
        seen.append(network(batch[0]).dtype)
        return original(network, batch, context)

    task.loss_terms = spy  # type: ignore[method-assign]
    _, trainer, result = train(tmp_path, task, config)
    assert set(seen) == {torch.bfloat16}
    assert {parameter.dtype for parameter in trainer.network.parameters()} == {torch.float32}
    assert result.state == "completed"


def test_masks_are_counted_and_void_stability(tmp_path: Path) -> None:
    config = toy_config()
    task = ToyTask(config)
    original = task.loss_terms

    def masked(network: Any, batch: Any, context: Any) -> Any:
        context.count_masked(torch.tensor([True, False, True]))
        context.count_limited(torch.tensor(1))
        return original(network, batch, context)

    task.loss_terms = masked  # type: ignore[method-assign]
    run, _, _ = train(tmp_path, task, config)
    assert {(row["num_masked"], row["num_limited"]) for row in read_rows(run.metrics_csv)} == {("2", "1")}
    assert judge(run).unmasked.answer == "no"
    assert not judge(run).stable


def test_a_task_that_cannot_draw_costs_no_training(tmp_path: Path) -> None:
    config = toy_config()
    task = ToyTask(config)

    def samples(network: Any, context: Any) -> Any:
        raise RuntimeError("expected 16 channels, got 64\nand more")

    task.samples = samples  # type: ignore[method-assign]
    run, _, result = train(tmp_path, task, config)
    assert result.state == "completed"
    events = [event for event in read_events(run.events_jsonl) if event["kind"] == "samples_failed"]
    assert [event["data"]["reason"] for event in events] == ["RuntimeError: expected 16 channels, got 64"]


@pytest.mark.parametrize(
    ("terms", "message"),
    [
        (lambda terms: {"mse": terms["mse"]}, "returned mse; it declares mse, size"),
        (lambda terms: {**terms, "mse": terms["mse"].expand(2)}, "has shape"),
        (lambda terms: {name: term.detach() for name, term in terms.items()}, "no loss term depends on the parameters"),
    ],
)
def test_a_task_that_cannot_be_trained_is_explained(tmp_path: Path, terms: Any, message: str) -> None:
    config = toy_config()
    task = ToyTask(config)
    original = task.loss_terms
    task.loss_terms = lambda *arguments: terms(original(*arguments))  # type: ignore[method-assign]
    with pytest.raises(ConfigError, match=message):
        train(tmp_path, task, config)


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("loss_term_names", ("mse",), "losses.weights has mse, size"),
        ("metrics", (), "compare.primary 'error' is no metric"),
    ],
)
def test_a_task_that_breaks_the_protocol_is_refused_at_the_start(
    tmp_path: Path, attribute: str, value: Any, message: str
) -> None:
    config = toy_config()
    task = ToyTask(config)
    setattr(task, attribute, value)
    with pytest.raises(ConfigError, match=message):
        toy_trainer(tmp_path, task, config)


def test_a_batch_larger_than_the_data_is_refused(tmp_path: Path) -> None:
    config = toy_config(data={"batch_size": 64})
    with pytest.raises(ConfigError, match="only 40 training items"):
        toy_trainer(tmp_path, ToyTask(config), config)


def test_batchnorm_is_configured_as_asked(tmp_path: Path) -> None:
    config = toy_config(
        network={"batchnorm": True}, stability={"batchnorm": {**BATCHNORM, "momentum": 0.01, "eps": 1e-3}}
    )
    _, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    trainer.records.close()
    layer = trainer.network[1]  # type: ignore[index]
    assert (layer.momentum, layer.eps) == (0.01, 1e-3)
