"""Guards and ladder inside the trainer: what they change, what they leave, and that no number depends on the clock."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcstab.checkpoint import read_checkpoint
from hpcstab.config.guards import DEFAULT
from hpcstab.judgement import judge
from hpcstab.metrics import read_events, read_history, read_rows
from hpcstab.rundir import RunDir, read_json
from hpcstab.task import Sum
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from tests.conftest import MakeRun
from tests.training.test_gate import Faulty, nan_at, same
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

CLOCKS = ("attempt", "time_s", "step_time_s", "peak_mem_gib")
SPIKE = {"window": 4, "min_updates": 3, "deviations": 8.0, "ratio": 5.0, "refresh_every": 1}
Loss = Callable[[int, Tensor], Tensor]


def guards(**changes: Any) -> dict[str, Any]:
    """The default with sections changed; the windows are a toy's."""
    values = copy.deepcopy(DEFAULT) | {"loss_spike": SPIKE, "norm_spike": None}
    for name, section in changes.items():
        values[name] = section if section is None else {**(values[name] or {}), **section}
    return values


def guarded(**changes: Any) -> Config:
    stability = {"gate": "closed", "guards": guards(), "health_every": {"steps": 4}, **changes.pop("stability", {})}
    trainer = {"checkpoint_every": {"steps": 5}, "nonfinite_budget": 10, **changes.pop("trainer", {})}
    return toy_config(network={"batchnorm": True}, stability=stability, trainer=trainer, **changes)


def times(factor: float, *steps: int) -> Loss:
    return lambda step, loss: loss * factor if step in steps else loss


def trained(root: Path, task: ToyTask, config: Config, lag: int = 2) -> tuple[RunDir, Trainer, str]:
    run, trainer = toy_trainer(root, task, config)
    trainer.lag = lag
    state = trainer.train().state
    trainer.records.close()
    return run, trainer, state


def events(run: RunDir, *kinds: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] in kinds]


def numbers(run: RunDir) -> list[dict[str, str]]:
    rows = read_history(run.metrics_csv).values()
    return [{name: cell for name, cell in row.items() if name not in CLOCKS} for row in rows]


def everything(trainer: Trainer) -> dict[str, Any]:
    gate = trainer.runner.gate
    assert trainer.guarding is not None
    return {
        "network": dict(trainer.network.state_dict()),
        "optimizer": trainer.optimizer.state_dict()["state"],
        "ema": gate.ema.state_dict() if gate.ema else None,
        "guards": trainer.guarding.guards.state_dict(),
        "lr_factor": trainer.guarding.ladder.lr_factor(trainer.update),
        "position": (trainer.step, trainer.update),
    }


def test_guards_that_find_nothing_change_nothing(tmp_path: Path) -> None:
    bare = guarded(stability={"guards": "none"})
    config = guarded()
    _, without, _ = trained(tmp_path / "bare", ToyTask(bare), bare)
    run, trainer, _ = trained(tmp_path / "guarded", ToyTask(config), config)
    assert same(dict(trainer.network.state_dict()), dict(without.network.state_dict()))
    assert not events(run, "guard_warning", "backoff", "rollback", "halted")
    assert sorted(path.name for path in run.checkpoints.glob("step_*")) == [f"step_{step:08d}" for step in (10, 15, 20)]


@pytest.mark.parametrize("lag", [0, 2])
def test_a_spike_is_refused_in_its_own_step_and_leaves_nothing(tmp_path: Path, lag: int) -> None:
    """The thresholds are those of a run that never saw the batch, so its later steps are too."""
    config = guarded()
    run, trainer, state = trained(tmp_path, ToyTask(config, times(1000, 9)), config, lag)
    other_run, other, _ = trained(tmp_path / "nan", Faulty(config, nan_at(9)), config)
    assert state == "completed"
    (refused,) = events(run, "step_refused")
    assert (refused["step"], refused["data"]["reason"]) == (9, "spike")
    assert same(everything(trainer), everything(other))
    assert [row["loss"] for row in numbers(run)[10:]] == [row["loss"] for row in numbers(other_run)[10:]]
    assert judge(run).unmasked.answer == "yes"
    assert judge(other_run).unmasked.answer == "no"


class Switched(ToyTask):
    """The second term is a thousand times larger than the first."""

    def loss_terms(self, network: Any, batch: Any, context: Any) -> Any:
        terms = super().loss_terms(network, batch, context)
        return {**terms, "size": terms["size"] * 1000 + 1000}


@pytest.mark.parametrize(("ramp", "spike"), [(0, 17), (3, 19)])
def test_a_term_that_comes_on_by_its_phase_is_no_spike(tmp_path: Path, ramp: int, spike: int) -> None:
    """The windows begin anew with the weights; a spike behind it is refused again."""
    phases = {"size": {"start": {"steps": 8}, "ramp": {"steps": ramp}}}
    config = guarded(
        losses={"weights": {"mse": 1.0, "size": 1.0}, "phases": phases},
        trainer={"max_steps": 24, "probe_every": {"steps": 50}},
    )
    run, trainer, state = trained(tmp_path, Switched(config, times(1e7, spike)), config)
    assert state == "completed"
    assert [(event["step"], event["data"]["reason"]) for event in events(run, "step_refused")] == [(spike, "spike")]
    rows = read_history(run.metrics_csv)
    assert float(rows[7]["loss"]) < 100 < 300 < float(rows[8]["loss"])
    assert trainer.runner.objective.unchanged_since(7) == 0
    assert [trainer.runner.objective.unchanged_since(step) for step in (8, 9, 10, 11)] == (
        [8, 9, 10, 10] if ramp else [8, 8, 8, 8]
    )


def test_refused_steps_in_a_row_climb_rung_by_rung(tmp_path: Path) -> None:
    """Skips, a back-off, a rollback to before the trouble, the end: each with its numbers."""
    config = guarded(
        trainer={"max_steps": 40, "nonfinite_budget": 1},  # which is for trainings without guards
        stability={"guards": guards(ladder={"max_backoffs": 1, "max_rollbacks": 1})},
    )
    run, trainer, state = trained(tmp_path, Faulty(config, nan_at(*range(12, 40))), config)
    assert state == "halted"
    told = [(event["kind"], event["step"]) for event in events(run, "backoff", "rollback", "halted")]
    # 12, 13, 14 are skipped, then 15, 16, 17; from 10 on the same again
    assert told == [("backoff", 15), ("rollback", 18), ("halted", 15)]
    backoff, rollback, halted = (event["data"] for event in events(run, "backoff", "rollback", "halted"))
    assert (backoff["number"], backoff["budget"], backoff["lr_factor"]) == (1, 1, 0.5)
    assert (rollback["to_step"], rollback["lr_factor"], rollback["began_at"]) == (10, 0.25, 12)
    assert (rollback["guard"], rollback["asked"]) == ("streak", "backoff")
    assert "1 back-offs and 1 rollbacks were used" in halted["reason"]
    assert [float(row["lr"]) for row in numbers(run)[9:12]] == [0.01, 0.0025, 0.0025]
    status = read_json(run.status_json)
    assert status is not None
    assert (status["state"], status["first_nonfinite_step"]) == ("halted", 12)
    assert trainer.step == 15
    assert judge(run).learned.answer == "no"


def test_without_guards_the_budget_ends_the_run(tmp_path: Path) -> None:
    """The gate refuses them all the same: three in a row are divergence."""
    config = guarded(trainer={"nonfinite_budget": 3}, stability={"guards": "none"})
    run, trainer, state = trained(tmp_path, Faulty(config, nan_at(*range(12, 40))), config)
    assert (state, trainer.step) == ("diverged", 15)
    assert not events(run, "backoff", "rollback", "halted")


def test_a_backoff_lowers_the_learning_rate_from_its_step_on(tmp_path: Path) -> None:
    config = guarded()
    run, _, state = trained(tmp_path, Faulty(config, nan_at(7, 8, 9)), config)
    assert state == "completed"
    assert [float(row["lr"]) for row in numbers(run)] == [0.01] * 10 + [0.005] * 10
    (backoff,) = events(run, "backoff")
    assert backoff["data"]["num_skips"] == 3


def test_long_health_gives_the_learning_rate_back(tmp_path: Path) -> None:
    """Little by little: where it was doubled at once, a network on real fields spiked within ten updates."""
    config = guarded(stability={"guards": guards(ladder={"recover_after": 4})})
    run, _, state = trained(tmp_path, Faulty(config, nan_at(7, 8, 9)), config)
    assert state == "completed"
    rates = [0.01] * 10 + [0.005] * 5 + [0.005 * 2.0 ** (part / 4) for part in (1, 2, 3)] + [0.01] * 2
    assert [float(row["lr"]) for row in numbers(run)] == pytest.approx(rates)
    (recovery,) = events(run, "recovery")
    assert recovery["step"] == 17
    assert recovery["data"] == {"lr_factor": 1.0, "used_backoffs": 0, "used_rollbacks": 0}


@pytest.mark.parametrize(("recover_after", "expected"), [(0, "halted"), (5, "completed")])
def test_rare_trouble_does_not_add_up_to_an_end(tmp_path: Path, recover_after: int, expected: str) -> None:
    """Heavy-tailed data: one of three runs on real fields was halted for five spells of refused steps in 7,800."""
    config = guarded(
        trainer={"max_steps": 80},
        stability={"guards": guards(ladder={"max_backoffs": 1, "max_rollbacks": 0, "recover_after": recover_after})},
    )
    spells = [step + number for step in (12, 28, 44, 60) for number in range(3)]
    run, _, state = trained(tmp_path, Faulty(config, nan_at(*spells)), config)
    assert state == expected
    backoffs = events(run, "backoff")
    assert [event["data"]["number"] for event in backoffs] == ([1] if expected == "halted" else [1, 2, 3, 4])
    assert {(event["data"]["used"], event["data"]["lr_factor"]) for event in backoffs} == {(1, 0.5)}


def steep(*steps: int) -> Loss:
    """The loss as it is, with gradients that are a thousand times as large."""
    return lambda step, loss: loss.detach() + 1000.0 * (loss - loss.detach()) if step in steps else loss


def test_gradients_that_stay_large_are_trained_on(tmp_path: Path) -> None:
    """They were answered by back-offs, rollbacks and a halt, though each batch was sound."""
    config = guarded(trainer={"max_steps": 30}, stability={"guards": guards(norm_spike=SPIKE)})
    run, trainer, state = trained(tmp_path, ToyTask(config, steep(*range(9, 25))), config)
    assert state == "completed"
    assert [event["step"] for event in events(run, "step_refused")] == [9, 10, 11]
    (warning,) = events(run, "guard_warning")
    assert (warning["data"]["verdict"], warning["data"]["accepted"]) == ("continue", "grad_norm")
    assert not events(run, "backoff", "rollback")
    assert trainer.update == 27


class TooFast(Faulty):
    """Some steps are NaN while the learning rate is above ``limit``: what a back-off can cure."""

    def __init__(self, config: Config, limit: float, *steps: int) -> None:
        super().__init__(config, lambda step, inputs: inputs * math.nan if self._fails(step) else inputs)
        self.optimizer: torch.optim.Optimizer | None = None
        self._limit = limit
        self._steps = steps

    def _fails(self, step: int) -> bool:
        assert self.optimizer is not None
        return step in self._steps and self.optimizer.param_groups[0]["lr"] > self._limit


def spiking(config: Config) -> ToyTask:
    return ToyTask(config, times(1000, 8, 11, 12, 13, 16))


def switched(config: Config) -> ToyTask:
    """Spikes around a phase, one of them in its first step."""
    return Switched(config, times(1e7, 6, 8, 13, 14))


def failing(config: Config) -> ToyTask:
    return TooFast(config, 0.003, 8, 11, 12, 16, 17)


def recovering(config: Config) -> ToyTask:
    """Two failures so far from each other that the rung of the first has been given back."""
    return TooFast(config, 0.003, 3, 4, 13, 14)


def steepening(config: Config) -> ToyTask:
    return ToyTask(config, steep(8, 9, 10, 11, 16))


PHASE = {"weights": {"mse": 1.0, "size": 1.0}, "phases": {"size": {"start": {"steps": 8}, "ramp": {"steps": 0}}}}
SCENARIOS: dict[str, tuple[Callable[[Config], ToyTask], dict[str, Any], list[str]]] = {
    "spikes": (spiking, {}, ["backoff"]),
    "phases": (switched, {}, []),
    "failures": (failing, {"streak": {"max_skips": 2}, "ladder": {"max_backoffs": 1}}, ["backoff", "rollback"]),
    "norms": (steepening, {"norm_spike": SPIKE}, []),
    "recoveries": (
        recovering,
        {"streak": {"max_skips": 2}, "ladder": {"max_backoffs": 1, "recover_after": 2}},
        ["backoff", "backoff"],
    ),
}


@pytest.mark.parametrize("stops", [[1], [1, 3], [2, 3], [3]])
@pytest.mark.parametrize("scenario", SCENARIOS)
def test_resumed_is_uninterrupted_at_every_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, scenario: str, stops: list[int]
) -> None:
    """Stopped at each step, with nothing and with all it may have in flight: the same to the last bit."""
    monkeypatch.setattr("hpcstab.checkpoint.format._to_disk", lambda path: None)
    monkeypatch.setattr("hpcstab.training.capsules.MAX_CAPSULES", 0)
    make_task, sections, rungs = SCENARIOS[scenario]
    config = guarded(stability={"guards": guards(**sections)}, losses=PHASE if scenario == "phases" else {})
    whole, expected_state, expected = attempts(tmp_path / "whole", make_task, config, [])
    run, state, resumed = attempts(tmp_path / "parts", make_task, config, stops)
    assert [event["kind"] for event in events(whole, "backoff", "rollback")] == rungs
    assert state == expected_state == "completed"
    assert same(everything(resumed), everything(expected))
    assert numbers(run) == numbers(whole)
    told = [[(e["kind"], e["step"], e["data"]) for e in events(each, *RUNGS)] for each in (run, whole)]
    assert told[0] == told[1]
    assert len(events(run, "resumed")) >= 20 // stops[-1] - 1
    assert events(run, "step_refused")


RUNGS = ("guard_warning", "backoff", "rollback", "recovery", "step_refused")


def attempts(
    root: Path, make_task: Callable[[Config], ToyTask], config: Config, stops: list[int]
) -> tuple[RunDir, str, Trainer]:
    """A run in as many attempts as it takes; ``stops``: turns of the loop in each, the last for all further ones."""
    run, first = toy_trainer(root, ToyTask(config), config)
    first.records.close()
    for number in range(1, 100):
        turns = stops[min(number, len(stops)) - 1] if stops else 10**9
        left = iter(range(turns))
        task = make_task(config)
        trainer = build_trainer(
            task,
            config,
            run,
            0,
            number,
            "error",
            (),
            lambda left=left: None if next(left, None) is not None else "TERM",  # type: ignore[misc]
        )
        if isinstance(task, TooFast):
            task.optimizer = trainer.optimizer
        state = trainer.train().state
        trainer.records.close()
        if state != "stopped":
            return run, state, trainer
    raise AssertionError("the run does not end")


class Injected:
    """Makes part of the state NaN before some step is launched, the first time or whenever."""

    def __init__(self, trainer: Trainer, site: str, step: int, *, once: bool) -> None:
        self._trainer, self._site, self._step, self._once = trainer, site, step, once
        self._launch = trainer.runner.launch
        self.times = 0
        trainer.runner.launch = self  # type: ignore[method-assign, assignment]

    def __call__(self, item: Any, lr: float, **options: Any) -> Any:
        if item.step == self._step and not (self._once and self.times):
            self.times += 1
            self._target().view(-1)[0] = math.nan
        return self._launch(item, lr, **options)

    def _target(self) -> Tensor:
        trainer = self._trainer
        first = next(iter(trainer.network.parameters())).detach()
        if self._site == "parameter":
            return first
        if self._site == "buffer":
            return trainer.network[1].running_var  # type: ignore[index, return-value]
        if self._site == "average":
            assert trainer.runner.gate.ema is not None
            return next(average for _, average in trainer.runner.gate.ema.tensors())
        key = {"moment": "exp_avg", "second_moment": "exp_avg_sq"}[self._site]
        return next(state for parameter, state in trainer.optimizer.state.items() if parameter.shape == first.shape)[
            key
        ]


def run_injected(root: Path, config: Config, site: str, step: int, *, once: bool) -> tuple[RunDir, Trainer, str]:
    run, trainer = toy_trainer(root, ToyTask(config), config)
    Injected(trainer, site, step, once=once)
    state = trainer.train().state
    trainer.records.close()
    return run, trainer, state


@pytest.mark.parametrize("step", [1, 6, 10, 19])
@pytest.mark.parametrize("site", ["parameter", "moment", "second_moment", "buffer", "average"])
def test_a_passing_fault_of_the_state_leaves_nothing(tmp_path: Path, site: str, step: int) -> None:
    """Bitwise the run without it, in every part; the fault and the way back are on record."""
    config = guarded(trainer={"ema_decay": 0.9})
    whole, expected, _ = trained(tmp_path / "whole", ToyTask(config), config)
    run, trainer, state = run_injected(tmp_path / "fault", config, site, step, once=True)
    assert state == "completed"
    assert same(everything(trainer), everything(expected))
    assert numbers(run) == numbers(whole)
    (rollback,) = events(run, "rollback")
    (fault,) = events(run, "state_nonfinite")
    assert step <= fault["step"] <= step + 5  # health checks come every 4 steps
    assert rollback["data"]["to_step"] <= step
    assert rollback["data"]["number"] == 1
    status = read_json(run.status_json)
    assert status is not None
    assert status["first_nonfinite_step"] == fault["step"]
    assert judge(run).finite.answer == "no"


def test_a_fault_that_returns_halts(tmp_path: Path) -> None:
    config = guarded()
    run, _, state = run_injected(tmp_path, config, "parameter", 7, once=False)
    assert state == "halted"
    assert len(events(run, "rollback")) == 1
    (halted,) = events(run, "halted")
    assert "it was found there before" in halted["data"]["reason"]
    _, manifest = read_checkpoint(run.checkpoint(7))
    assert manifest["healthy"] is False


def test_faults_at_ever_other_steps_use_up_the_budget(tmp_path: Path) -> None:
    config = guarded()
    run, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    for step in (3, 8, 13):
        Injected(trainer, "parameter", step, once=True)
    assert trainer.train().state == "halted"
    trainer.records.close()
    assert [event["data"]["number"] for event in events(run, "rollback")] == [1, 2]
    assert "2 rollbacks were used" in events(run, "halted")[0]["data"]["reason"]


def test_used_budgets_survive_a_kill(tmp_path: Path) -> None:
    """Killed right after a rollback: the next attempt knows that it was there."""
    config = guarded(stability={"guards": guards(ladder={"max_rollbacks": 1})})
    run, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    Injected(trainer, "parameter", 7, once=True)
    calls = iter(range(10**9))

    def killed() -> None:
        if next(calls) > 7 and events(run, "rollback"):
            raise KeyboardInterrupt

    trainer.stop_requested = killed
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.records.close()
    again = build_trainer(ToyTask(config), config, run, 0, 2, "error")
    Injected(again, "parameter", 12, once=True)
    assert again.train().state == "halted"
    again.records.close()


def test_without_guards_a_sick_state_is_divergence(tmp_path: Path) -> None:
    config = guarded(stability={"guards": "none"})
    run, _, state = run_injected(tmp_path, config, "parameter", 7, once=True)
    assert state == "diverged"
    status = read_json(run.status_json)
    assert status is not None
    assert status["first_nonfinite_step"] == 7


class Blind(ToyTask):
    """Evaluations of some training steps give NaN for every batch, though the weights are finite; ``times`` times."""

    def __init__(self, config: Config, steps: tuple[int, ...], times: float) -> None:
        super().__init__(config)
        self.steps, self.left = steps, times

    def evaluate(self, network: Any, batch: Any, context: Any) -> Any:
        sums = super().evaluate(network, batch, context)
        if context.step not in self.steps or self.left <= 0:
            return sums
        self.left -= 0.5  # there are two batches
        return {name: Sum(part.value * math.nan) for name, part in sums.items()}


def test_an_evaluation_without_a_valid_batch_goes_back(tmp_path: Path) -> None:
    config = guarded(trainer={"evaluate_every": {"steps": 5}})
    run, trainer, state = trained(tmp_path, Blind(config, (10,), times=1), config)
    assert state == "completed"
    (rollback,) = events(run, "rollback")
    assert (rollback["step"], rollback["data"]["to_step"], rollback["data"]["guard"]) == (10, 5, "evaluation")
    assert [event["step"] for event in events(run, "eval_empty")] == [10]
    assert trainer.guarding is not None
    assert float(read_history(run.metrics_csv)[10]["lr"]) == pytest.approx(0.005)


def test_evaluations_that_stay_empty_halt_with_finite_weights(tmp_path: Path) -> None:
    config = guarded(trainer={"evaluate_every": {"steps": 5}})
    run, trainer, state = trained(tmp_path, Blind(config, (10,), times=math.inf), config)
    assert state == "halted"
    assert trainer.guarding is not None
    assert len(events(run, "rollback")) == trainer.guarding.ladder.max_rollbacks
    (halted,) = events(run, "halted")
    assert "none of 2 batches was valid" in halted["data"]["reason"]
    assert judge(run).finite.answer == "yes"
    open_config = toy_config(trainer={"evaluate_every": {"steps": 5}})
    assert trained(tmp_path / "open", Blind(open_config, (10,), times=math.inf), open_config)[2] == "diverged"


def test_nothing_to_go_back_to_halts(tmp_path: Path) -> None:
    config = guarded()
    run, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    Injected(trainer, "parameter", 3, once=True)
    original = trainer.start_batches

    def damage() -> None:
        original()
        trainer.saver.writer.finish()
        (run.checkpoint(0) / "state.pt").write_bytes(b"")

    trainer.start_batches = damage  # type: ignore[method-assign]
    result = trainer.train()
    trainer.records.close()
    assert result.state == "halted"
    assert "none of 1 checkpoints passes" in result.reason


def test_a_stalled_training_is_told_and_may_be_halted(tmp_path: Path) -> None:
    for verdict, expected in (("continue", "completed"), ("halt", "halted")):
        section = {"window": 4, "min_fall": 0.9, "verdict": verdict}
        config = guarded(stability={"guards": guards(stalled=section)})
        run, trainer, state = trained(tmp_path / verdict, ToyTask(config), config)
        assert state == expected
        warning = events(run, "guard_warning")[0]
        assert (warning["step"], warning["data"]["guard"], warning["data"]["num_updates"]) == (7, "stalled", 4)
        if verdict == "halt":
            assert trainer.update == 10  # update 7 counts from update 7 + 1 + DELAY on


def test_a_module_that_does_not_move_is_told_once(tmp_path: Path) -> None:
    class Detached(ToyTask):
        def loss_terms(self, network: Any, batch: Any, context: Any) -> Any:
            first = network[0]
            first.weight.requires_grad_(True)
            terms = super().loss_terms(network, batch, context)
            first.weight.grad = None
            return {name: term + 0.0 * first.weight.sum() for name, term in terms.items()} if context.step else terms

    config = guarded(optimizer={"name": "sgd", "lr": 1e-30})
    run, _, _ = trained(tmp_path, Detached(config), config)
    (warning,) = events(run, "guard_warning")
    assert warning["data"]["num_still"] == warning["data"]["of"] == 3


def test_drift_of_running_statistics_is_told_with_its_layer(tmp_path: Path) -> None:
    """Inputs jump by 100 standard deviations at step 7, where a health check looks."""
    config = guarded(stability={"guards": guards(loss_spike=None)})
    task = Faulty(config, lambda step, inputs: inputs + 100.0 if step == 7 else inputs)
    run, _, _ = trained(tmp_path, task, config)
    warnings = [event for event in events(run, "guard_warning") if event["data"]["guard"] == "batchnorm"]
    assert (warnings[0]["step"], warnings[0]["data"]["layer"], warnings[0]["data"]["what"]) == (7, "1", "mean_shift")


def test_readings_are_those_of_the_batch(tmp_path: Path) -> None:
    """From running statistics before and after: what a pass over the layer's input would say."""
    config = guarded()
    seen: list[Tensor] = []
    _, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    trainer.network[1].register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0].detach()))  # type: ignore[index, operator]
    layer = trainer.network[1]  # type: ignore[index]
    trainer.start_batches()
    mean, var = layer.running_mean.clone(), layer.running_var.clone()
    pending = trainer.runner.launch(next(trainer.items), 0.01, probes=False, checks=True)
    assert pending.readings is not None
    readings = pending.readings.read()
    batch_var = seen[0].var(0, unbiased=True)
    shift = ((seen[0].mean(0) - mean).abs() / (var + layer.eps).sqrt()).max()
    ratio = ((batch_var + layer.eps) / (var + layer.eps)).log().abs().max().exp()
    assert readings["batchnorm.1.mean_shift"] == pytest.approx(float(shift), rel=1e-4)
    assert readings["batchnorm.1.var_ratio"] == pytest.approx(float(ratio), rel=1e-4)
    trainer.records.close()


def test_fp16_is_warned_about_before_it_overflows(tmp_path: Path) -> None:
    precision = {"dtype": "fp16", "loss_scale": {"initial": 2.0**15, "growth_every": 1000}}
    config = guarded(precision=precision, stability={"health_every": {"steps": 1}})
    run, _, state = trained(tmp_path, ToyTask(config), config)
    first = next(event for event in events(run, "guard_warning") if event["data"]["guard"] == "headroom")
    assert 0.25 < first["data"]["share_of_fp16"] < 1.0
    assert state == "completed"


def test_thresholds_reach_the_device(tmp_path: Path) -> None:
    config = guarded()
    run, trainer, _ = trained(tmp_path, ToyTask(config), config)
    assert trainer.guarding is not None
    loss, _ = trainer.guarding.guards.thresholds(trainer.update - 1)
    limits = trainer.runner.gate.limits
    assert limits is not None
    assert float(limits[0]) == pytest.approx(loss, rel=1e-6)
    assert float(limits[1]) == math.inf  # that guard is off
    assert len(read_rows(run.metrics_csv)) == 20


def test_hardened_changes_nothing_where_nothing_fires(train_run: MakeRun) -> None:
    """Gate and guards of a real model, as its YAML has them: the numbers are those without them, to the last bit."""
    plain, hardened = train_run("swae3d", "before"), train_run("swae3d", "before+hardened")
    states = [read_checkpoint(run.checkpoint(6))[0] for run in (plain, hardened)]
    assert same(dict(states[0]["network"]), dict(states[1]["network"]))
    assert numbers(plain) == numbers(hardened)
    judgement = judge(hardened)
    assert (judgement.finite.answer, judgement.unmasked.answer) == ("yes", "yes")
    assert not any(judgement.counts.values())
