"""Saves beside the training: what a step waits for, that no number depends on their pace, what a failing disk costs."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from hpcstab.checkpoint import background, store
from hpcstab.checkpoint.format import _Digesting
from hpcstab.errors import EXIT_NO_ANSWER, CheckpointError
from hpcstab.metrics import read_events, read_history
from hpcstab.rundir import RunDir, read_json
from hpcstab.task import Partial, StepContext, Sum
from hpcstab.training import Trainer, saving
from hpcstab.training.build import build_trainer
from tests.training.test_gate import same
from tests.training.test_ladder import attempts, everything, failing, guarded, guards, numbers, trained
from tests.training.toy import Config, ToyTask, toy_config, toy_trainer

PATIENCE_S = 20.0


def saved_often(**changes: Any) -> Config:
    """20 steps, a checkpoint every 5, no guards: nothing but the cadence saves before step 10."""
    return toy_config(trainer={"checkpoint_every": {"steps": 5}, "evaluate_every": {"steps": 20}}, **changes)


def events(run: RunDir, kind: str) -> list[dict[str, Any]]:
    return [event for event in read_events(run.events_jsonl) if event["kind"] == kind]


def saved_steps(run: RunDir) -> list[int]:
    return [event["step"] for event in events(run, "checkpoint_saved")]


def at_step(step: int, act: Callable[[], None]) -> Callable[[int, Tensor], Tensor]:
    """A task's loss that does something when a step runs."""

    def loss(now: int, value: Tensor) -> Tensor:
        if now == step:
            act()
        return value

    return loss


class Disk:
    """Stands before the writes of checkpoints; ``broken``: they fail as a disk that does not answer."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.broken = False
        self.num_failed = 0
        self.repairs_after: int | None = None
        pass_on = _Digesting.write

        def write(file: Any, data: Any) -> int:
            if self.broken:
                self.num_failed += 1
                self.broken = self.num_failed != self.repairs_after
                raise OSError(5, "Input/output error")
            return pass_on(file, data)

        monkeypatch.setattr(_Digesting, "write", write)
        monkeypatch.setattr(background, "RETRY_S", 0.01)
        monkeypatch.setattr(saving, "LAST_PATIENCE_S", 0.0)

    def breaks_under(self, trainer: Trainer) -> None:
        """From now on; what is under way comes to its end before."""
        trainer.saver.writer.finish()
        self.broken = True


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Disk:
    return Disk(monkeypatch)


def test_steps_go_on_while_a_checkpoint_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checkpoint before step 5 cannot be finished until step 9 has run."""
    may_end, original = threading.Event(), store.write_checkpoint

    def slow(*args: Any) -> None:
        assert may_end.wait(PATIENCE_S), "the training waited for the writer"
        original(*args)

    monkeypatch.setattr(store, "write_checkpoint", slow)
    config = saved_often()
    run, _, state = trained(tmp_path, ToyTask(config, at_step(9, may_end.set)), config)
    assert state == "completed"
    assert saved_steps(run) == [5, 10, 15, 20]
    for event in events(run, "checkpoint_saved"):
        assert event["data"]["healthy"] and event["data"]["copy_s"] < PATIENCE_S / 10


def test_a_second_save_waits_for_the_first_and_says_how_long(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.write_checkpoint

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        original(*args)

    monkeypatch.setattr(store, "write_checkpoint", slow)
    config = saved_often()
    run, _, _ = trained(tmp_path, ToyTask(config), config)
    first, *others = (event["data"] for event in events(run, "checkpoint_saved"))
    assert first["wait_s"] < 0.1 < min(each["wait_s"] for each in others)
    assert min(each["write_s"] for each in (first, *others)) >= 0.2


def test_no_number_depends_on_how_slow_a_disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Back-off and rollback included: a rollback reads what the run saved, however late that came to disk."""
    config = guarded(stability={"guards": guards(streak={"max_skips": 2}, ladder={"max_backoffs": 1})})
    fast, _, expected = attempts(tmp_path / "fast", failing, config, [])
    original = store.write_checkpoint

    def slow(*args: Any) -> None:
        time.sleep(0.1)
        original(*args)

    monkeypatch.setattr(store, "write_checkpoint", slow)
    run, state, trainer = attempts(tmp_path / "slow", failing, config, [])
    assert state == "completed"
    assert same(everything(trainer), everything(expected))
    assert numbers(run) == numbers(fast)
    told = [[(event["step"], event["data"]) for event in events(each, "rollback")] for each in (run, fast)]
    assert told[0] == told[1] != []


def test_a_save_under_way_is_complete_when_the_attempt_dies(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    original = store.write_checkpoint

    def slow(*args: Any) -> None:
        time.sleep(0.2)
        original(*args)

    def dies() -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(store, "write_checkpoint", slow)
    config = saved_often()
    run, trainer = toy_trainer(tmp_path, ToyTask(config, at_step(5, dies)), config)
    with pytest.raises(KeyboardInterrupt):
        trainer.train()
    trainer.records.close()
    assert saved_steps(run) == [5]
    restored = store.CheckpointStore(run).newest("cpu")
    assert restored is not None
    assert restored.manifest["step"] == 5


def test_a_disk_that_fails_for_a_while_costs_no_checkpoint(tmp_path: Path, disk: Disk) -> None:
    """It is written as soon as that is possible: the same state, and the event of its failure before that."""
    config = saved_often()
    disk.repairs_after = 1
    run, trainer = toy_trainer(tmp_path, ToyTask(config, at_step(8, lambda: disk.breaks_under(trainer))), config)
    assert trainer.train().state == "completed"
    trainer.records.close()
    (failed,) = events(run, "checkpoint_failed")
    assert failed["step"] == 10
    assert "Input/output error" in failed["data"]["reason"]
    assert saved_steps(run) == [5, 10, 15, 20]
    assert [event["data"]["tries"] for event in events(run, "checkpoint_saved")] == [1, 2, 1, 1]


def test_training_goes_on_from_save_to_save_while_a_healthy_checkpoint_exists(tmp_path: Path, disk: Disk) -> None:
    """The disk is broken from step 8 to 18: two checkpoints are lost, with an event each, and nothing else."""
    config = saved_often()

    def loss(step: int, value: Tensor) -> Tensor:
        if step in (8, 18):
            trainer.saver.writer.finish()
        disk.broken = 8 <= step < 18
        if step == 17:
            restored = store.CheckpointStore(run).newest("cpu")
            assert restored is not None and restored.manifest["step"] == 5
        return value

    run, trainer = toy_trainer(tmp_path, ToyTask(config, loss), config)
    whole, _, _ = trained(tmp_path / "whole", ToyTask(config), config)
    assert trainer.train().state == "completed"
    trainer.records.close()
    assert [event["step"] for event in events(run, "checkpoint_failed")] == [10, 15]
    assert saved_steps(run)[0] == 5 and saved_steps(run)[-1] == 20
    assert numbers(run) == numbers(whole)


def test_without_any_healthy_checkpoint_the_second_failure_ends_it(tmp_path: Path, disk: Disk) -> None:
    """Nothing would be left of the training: it ends with one line, after the whole time until the next save."""
    config = saved_often()
    disk.broken = True
    run, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    with pytest.raises(
        CheckpointError, match=r"no healthy checkpoint, and none could be written: .*: Input/output error"
    ) as error:
        trainer.train()
    trainer.records.close()
    assert error.value.exit_code == EXIT_NO_ANSWER
    assert "\n" not in str(error.value)
    assert len(read_history(run.metrics_csv)) == 10
    assert [event["step"] for event in events(run, "checkpoint_failed")] == [5]
    assert not list(run.checkpoints.glob("*")) and not list(run.checkpoints.glob(".*"))


def test_a_trained_state_that_cannot_be_saved_is_an_error_and_a_resume_makes_it_again(
    tmp_path: Path, disk: Disk
) -> None:
    config = saved_often()
    run, trainer = toy_trainer(tmp_path, ToyTask(config, at_step(17, lambda: disk.breaks_under(trainer))), config)
    with pytest.raises(CheckpointError, match="trained state could not be saved; resume the run"):
        trainer.train()
    trainer.records.close()
    assert not events(run, "train_end")
    disk.broken = False
    again = build_trainer(ToyTask(config), config, run, 0, 2, "error")
    assert again.train().state == "completed"
    again.records.close()
    assert saved_steps(run) == [5, 10, 15, 20]


def test_a_stop_without_room_for_its_state_goes_back_to_the_last_healthy(tmp_path: Path, disk: Disk) -> None:
    """The job may be requeued: the steps since the last checkpoint are lost, and an event says so."""
    config = saved_often()
    run, trainer = toy_trainer(tmp_path, ToyTask(config, at_step(7, lambda: disk.breaks_under(trainer))), config)
    trainer.stop_requested = lambda: "SIGUSR2" if trainer.step == 8 else None
    assert trainer.train().state == "stopped"
    trainer.records.close()
    kinds = [event["kind"] for event in read_events(run.events_jsonl)]
    assert kinds[-3:] == ["stop_requested", "checkpoint_failed", "train_end"]
    disk.broken = False
    again = build_trainer(ToyTask(config), config, run, 0, 2, "error")
    assert again.train().state == "completed"
    again.records.close()
    assert events(run, "resumed")[0]["step"] == 5
    whole, _, _ = trained(tmp_path / "whole", ToyTask(config), config)
    assert numbers(run) == numbers(whole)


def test_a_stop_that_would_leave_nothing_is_an_error(tmp_path: Path, disk: Disk) -> None:
    config = saved_often()
    disk.broken = True
    run, trainer = toy_trainer(tmp_path, ToyTask(config), config)
    trainer.stop_requested = lambda: "SIGTERM" if trainer.step == 3 else None
    with pytest.raises(CheckpointError, match="no healthy checkpoint, and none could be written"):
        trainer.train()
    trainer.records.close()
    assert [event["kind"] for event in read_events(run.events_jsonl)][-2:] == ["stop_requested", "checkpoint_failed"]


def test_evidence_that_cannot_be_saved_does_not_change_a_result(tmp_path: Path, disk: Disk) -> None:
    """Neither its own failure nor that of the save before it, without any healthy checkpoint."""
    config = saved_often()
    disk.broken = True
    task = ToyTask(config, lambda step, loss: loss * float("nan") if step >= 6 else loss)
    run, _, state = trained(tmp_path, task, config)
    assert state == "diverged"
    assert [event["step"] for event in events(run, "checkpoint_failed")] == [5, 9]
    assert (read_json(run.status_json) or {})["state"] == "diverged"


class Counting(ToyTask):
    """Its network counts forward passes in a buffer that no state_dict has, and learns from the count."""

    def network(self) -> nn.Module:
        network = super().network()
        network.register_buffer("passes", torch.zeros(()), persistent=False)
        return network

    def loss_terms(self, network: Any, batch: Any, context: Any) -> Any:
        network.passes += 1.0
        terms = super().loss_terms(network, batch, context)
        return {**terms, "mse": terms["mse"] * (1.0 + 0.1 * network.passes)}


def test_buffers_outside_of_the_state_dict_come_back(tmp_path: Path) -> None:
    config = saved_often()
    whole, _, _ = attempts(tmp_path / "whole", Counting, config, [])
    run, _, _ = attempts(tmp_path / "parts", Counting, config, [3])
    assert numbers(run) == numbers(whole)
    assert len(events(run, "resumed")) >= 5


class BestAtTen(ToyTask):
    def evaluate(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Partial]:
        return {"squared": Sum(torch.tensor(1.0 if context.step == 10 else 2.0)), "count": Sum(torch.tensor(1))}


@pytest.mark.parametrize("stops", [[], [10, 100]])
def test_the_best_evaluation_is_kept_whatever_stops_the_training_before_it(tmp_path: Path, stops: list[int]) -> None:
    """Stopped before step 10 the state is saved without its evaluation, and after the evaluation once more."""
    config = toy_config(trainer={"checkpoint_every": {"steps": 7}, "max_steps": 50})
    run, _, _ = attempts(tmp_path, BestAtTen, config, stops)
    names = [f"step_{step:08d}" for step in (50, 49, 42, 35, 10)]
    assert read_json(run.checkpoints / "index.json") == {"last": names[0], "best": names[4], "healthy": names}
