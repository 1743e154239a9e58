"""Composition root: a run folder -> config -> task -> trainer.

What a run trains is read back from its folder alone, so that a folder carried elsewhere trains the same.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from hpcstab.config import (
    FailureCondition,
    RunConfig,
    completed,
    config_class_of,
    load_object,
    read_run_config,
    validate_section,
)
from hpcstab.errors import CheckpointError, ConfigError, HpcstabError, RankLostError, RunError
from hpcstab.rundir import RunDir, read_json, remove_asides, write_json
from hpcstab.task import Task, TaskFactory

if TYPE_CHECKING:
    from torch import Tensor

    from hpcstab.stability.replay.replayed import Replayed
    from hpcstab.training.ranks import Ranks


_LAST_WORDS_S = 2.0  # a process that closed its connections may not have ended yet
_POLL_S = 0.1


@dataclass(frozen=True)
class Execution:
    """How an attempt ended: completed, diverged, halted, failed or stopped (by a signal)."""

    state: str
    steps_gained: int
    reason: str


def execute(run: RunDir, attempt: int, stop_requested: Callable[[], str | None] = lambda: None) -> Execution:
    """Train one attempt of the run; of several ranks the first, which writes the files.

    A crash in the training is written to status.json with its error, its traceback goes to stderr, and
    the state is ``failed``; only what no record could be made of is raised.

    Raises:
        RunError: the run folder cannot be read or written.
        RankLostError: another rank was lost; it is on no record, since whoever started the ranks may start them again.
    """
    remove_asides(run)
    try:
        result = _train(run, attempt, stop_requested, lambda attempt: contextlib.nullcontext())
    except RankLostError:
        raise
    except HpcstabError as error:
        with contextlib.suppress(RunError):  # the disk that is full for the run is full for its status as well
            record_failure(run, attempt, str(error))
        raise
    except Exception as error:
        traceback.print_exc()
        reason = f"{type(error).__name__}: {error}"
        record_failure(run, attempt, reason)
        return Execution("failed", 0, reason)
    return result


def execute_beside(
    run: RunDir,
    stop_requested: Callable[[], str | None],
    recorded: Callable[[int], AbstractContextManager[None]],
) -> Execution:
    """Train as one of the other ranks of an attempt; an error is raised and recorded by nobody else.

    Args:
        recorded: number of the attempt, which the first rank tells -> what is entered meanwhile.
    """
    return _train(run, None, stop_requested, recorded)


def load_task(model: str, config: RunConfig, seed: int, origin: str) -> Task:
    """The task of a model: ``hpcstab.models.<model>.task:Task``, or the object that ``model`` names."""
    if ":" in model:
        factory = load_object(model, origin)
    else:
        factory = importlib.import_module(f"hpcstab.models.{model}.task").Task
    return cast(TaskFactory, factory)(config, seed)


def read_config(run: RunDir) -> tuple[str, RunConfig]:
    """(model reference, config) of a run folder."""
    values = read_run_config(run.config_yaml)
    model = str(values.pop("model", ""))
    return model, validate_section(config_class_of(model, str(run.config_yaml)), values, str(run.config_yaml))


def replay(folder: Path, device: str | None = None, model: str | None = None) -> Replayed:
    """Run the failing step of a capsule again, name who made its first non-finite value, and say what to change.

    Args:
        device: ``cpu`` or ``cuda``; None: that of the capsule, or the CPU where it is not there.
        model: reference to the task, where the capsule's own does not lead to it here.

    Raises:
        ConfigError: the device is not there, or ``model`` names no task.
        CheckpointError: the folder is no capsule, is damaged, or its task cannot be built here.
    """
    import torch

    from hpcstab.stability.replay.capsule import read_capsule
    from hpcstab.stability.replay.replayed import Replayed, threads_of
    from hpcstab.training.replaying import replay_capsule

    if device not in (None, "cpu", "cuda"):
        raise ConfigError(f"--device is '{device}'; it can be cpu or cuda")
    if device == "cuda" and not torch.cuda.is_available():
        raise ConfigError("--device cuda: no GPU answers here; leave it away or say cpu")
    capsule = read_capsule(folder)
    if "config" not in capsule.facts:
        raise CheckpointError(
            f"{folder}: names no task, only your own code has its model and its loss(model, batch): there,"
            f' print(hpcstab.replay("{folder}", model, loss, optimizer)) says what this command would'
        )
    reference, origin = model or capsule.facts["model"], str(folder / "manifest.json")
    chosen = device or ("cuda" if capsule.facts["device"] == "cuda" and torch.cuda.is_available() else "cpu")
    with threads_of(capsule.facts):  # a task may compute before it is there: fit a first stage, draw its data
        try:
            config = validate_section(
                config_class_of(reference, origin), completed(reference, capsule.facts["config"]), origin
            )
            task = load_task(reference, config, capsule.facts["seed"], origin)
        except ConfigError as error:
            if model is not None:
                raise
            raise CheckpointError(f"its task cannot be built here, say --model FILE.py:Task: {error}") from None
        return Replayed(capsule.facts, chosen, replay_capsule(task, config, capsule, torch.device(chosen)))


def reestimate(folder: Path, state: Mapping[str, Tensor], layers: Sequence[str]) -> Mapping[str, tuple[Tensor, Tensor]]:
    """BatchNorm statistics for a checkpoint of a run, from training batches of that run; for ``hpcstab.doctor.repair``.

    Args:
        folder: the checkpoint, inside its run folder.
        state: of its network, with the lost statistics reset.
        layers: which have to be estimated.

    Raises:
        CheckpointError: it lies in no run folder, or the run's task cannot be built here.
    """
    from hpcstab.checkpoint import read_manifest
    from hpcstab.training.reestimating import reestimate_statistics

    run = RunDir(folder.resolve().parent.parent)
    try:
        seed = run.identity()["seed"]
        model, config = read_config(run)
        task = load_task(model, config, seed, str(run.config_yaml))
        step = read_manifest(folder)["step"]
        return reestimate_statistics(task, config, seed, state, step, layers)
    except HpcstabError as error:
        raise CheckpointError(f"the model of {folder} cannot be run here: {error}") from None


def _train(
    run: RunDir,
    attempt: int | None,
    stop_requested: Callable[[], str | None],
    recorded: Callable[[int], AbstractContextManager[None]],
) -> Execution:
    from hpcstab.training.ranks import join_ranks, leave_ranks

    ranks = join_ranks()
    try:
        number = ranks.of_first(attempt)
        assert number is not None
        with recorded(number):
            return _train_as(ranks, run, number, stop_requested)
    except RankLostError as error:
        raise RankLostError(f"{error}{_who_ended(ranks, run)}") from error
    finally:
        leave_ranks()


def _train_as(ranks: Ranks, run: RunDir, attempt: int, stop_requested: Callable[[], str | None]) -> Execution:
    from hpcstab.training.build import build_trainer

    identity = run.identity()
    model, config = read_config(run)
    seed = identity["seed"]
    task = load_task(model, config, seed, str(run.config_yaml))
    failure = [FailureCondition.model_validate(condition) for condition in identity["failure"]]
    primary = identity["compare"]["primary"]
    trainer = build_trainer(task, config, run, seed, attempt, primary, failure, stop_requested, ranks)
    try:
        result = trainer.train()
    finally:
        trainer.tensorboard.close()
        trainer.records.close()
    return Execution(result.state, result.steps_gained, result.reason)


def _who_ended(ranks: Ranks, run: RunDir) -> str:
    """Which ranks are no more, as far as it can be seen from here, and where they said why."""
    deadline = time.monotonic() + _LAST_WORDS_S
    while not (ended := ranks.ended()) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    attempt = max(run.attempt_numbers(), default=1)
    logs = ", ".join(str(run.log(attempt, rank).relative_to(run.path)) for rank in ended or range(ranks.count))
    return f"; rank {', '.join(map(str, ended))} has ended, see {logs}" if ended else f"; see {logs}"


def record_failure(run: RunDir, attempt: int, reason: str) -> None:
    """The run has failed, and why, in status.json."""
    status: dict[str, Any] = read_json(run.status_json) or {"step": 0, "total_steps": None, "update": 0}
    failed = {"state": "failed", "error": reason, "attempt": attempt, "time": time.time()}
    write_json(run.status_json, status | failed)
