"""A capsule as a step that can be run again: the task, and the state that the step began with.

The step runs through :meth:`StepRunner.gradients`, the same code as in the training.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from hpcstab.config import RunConfig
from hpcstab.errors import CheckpointError
from hpcstab.stability.batchnorm.running_statistics import RunningStatistics
from hpcstab.stability.replay.capsule import Capsule
from hpcstab.stability.replay.failing_step import Batch, FailingStep, Precision
from hpcstab.stability.replay.replay import Replay
from hpcstab.stability.replay.replayed import replay_as_recorded
from hpcstab.task import Task
from hpcstab.training.batches import StepBatch, to_device
from hpcstab.training.build import build_gate, build_network
from hpcstab.training.objective import Objective
from hpcstab.training.optimizers import build_optimizers
from hpcstab.training.precision import set_tf32
from hpcstab.training.step import StepRunner


def replay_capsule(task: Task, config: RunConfig, capsule: Capsule, device: torch.device) -> Replay:
    """Replay the step of a capsule.

    Raises:
        CheckpointError: the state does not fit the network that the task builds.
    """
    return replay_as_recorded(failing_step(task, config, capsule, device), capsule.facts, device)


def failing_step(task: Task, config: RunConfig, capsule: Capsule, device: torch.device) -> FailingStep:
    """The step of a capsule, ready to run on ``device``."""
    set_tf32(config.precision)
    facts, state = capsule.facts, capsule.state
    network = build_network(task, config, facts["seed"], device)
    optimizer = build_optimizers(task, network, config.optimizer)
    try:
        network.load_state_dict(state["network"])
        optimizer.load_state_dict(state["optimizer"])
        for name, buffer in network.named_buffers():
            buffer.copy_(state["buffers"][name])  # those too that no state_dict holds
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{capsule.folder}: does not fit the network of {facts['model']}: {reason}") from None
    plain = config.model_copy(
        update={"precision": config.precision.model_copy(update={"dtype": "fp32", "loss_scale": None})}
    )
    objective = Objective(config.losses, facts["steps_per_epoch"], config.trainer.duration_factor)
    objective.load_state_dict(state["objective"])
    runner = StepRunner(
        task=task,
        network=network,
        optimizer=optimizer,
        gate=build_gate(config, network, optimizer, device),
        objective=objective,
        statistics=RunningStatistics(network, "none"),
        precision=config.precision,
        num_micro_batches=config.trainer.micro_batches,
        device=device,
        seed=facts["seed"],
    )
    in_full = replace(runner, gate=build_gate(plain, network, optimizer, device), precision=plain.precision)
    if runner.gate.loss_scale is not None:
        runner.gate.loss_scale.load_state_dict(state["loss_scale"])
    ids = tuple(facts["ids"])

    def gradients(batch: Batch, *, precision: Precision, term: str | None) -> tuple[Tensor, Mapping[str, Tensor]]:
        chosen = runner if precision == "recorded" else in_full
        if term is not None:
            chosen = replace(chosen, objective=_OnlyTerm(objective, term))
        loss, figures, _ = chosen.gradients(StepBatch(facts["step"], facts["epoch"], ids, batch))
        return loss, figures

    return FailingStep(
        network,
        optimizer,
        to_device(state["batch"], device),
        gradients,
        state["random"],
        ids,
        tuple(name for name in task.loss_term_names if objective.weight(name, facts["step"]) != 0.0),
        config.precision.dtype,
        float(runner.gate.loss_scale.value) if runner.gate.loss_scale else 1.0,
        config.trainer.micro_batches,
        state["ema"] or {},
    )


@dataclass(frozen=True)
class _OnlyTerm(Objective):
    """One term of an objective, under its weight."""

    whole: Objective
    name: str

    def total(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        return self.whole.weight(self.name, step) * terms[self.name]
