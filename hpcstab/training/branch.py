"""The state that a rerun begins with: its parent's where nothing was changed, else what of it still holds.

It is made before the run is queued, so that the training itself resumes from a checkpoint like any other: a resume that
took over whatever fits would hide that a file is not what it should be. What starts anew is named.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from hpcstab.config import RunConfig
from hpcstab.stability.batchnorm.running_statistics import RunningStatistics
from hpcstab.stability.gate.gate import Gate
from hpcstab.task import Task
from hpcstab.training.batchnorm_care import BatchNormCare
from hpcstab.training.build import CPU, build_gate, build_network
from hpcstab.training.guarding import Guarding, build_guarding
from hpcstab.training.optimizers import Optimizers, build_optimizers
from hpcstab.training.state import state_of_parts

_SAME_MOMENTS = ("adam", "adamw")


@dataclass(frozen=True)
class Beginning:
    """A state, and in words what of it starts anew."""

    state: dict[str, Any]
    fresh: tuple[str, ...]


@dataclass(frozen=True)
class _Parts:
    """What a training has at its first step, around given weights."""

    network: nn.Module
    optimizer: Optimizers
    gate: Gate
    batchnorm: BatchNormCare
    guarding: Guarding | None

    def state(self) -> dict[str, Any]:
        return state_of_parts(self.network, self.optimizer, self.gate, self.batchnorm, self.guarding)


def begin_with_weights(task: Task, config: RunConfig, seed: int, weights: Mapping[str, Any]) -> Beginning:
    """Step 0 of a training whose network has these weights, which must fit it."""
    position = {"step": 0, "update": 0, "nonfinite_streak": 0, "status": _status(None, None)}
    objective: dict[str, Any] = {"restarts": {}, "nonfinite": []}
    parts = _build(task, config, seed, weights)
    return Beginning({**parts.state(), "objective": objective, **position}, ("everything but the weights",))


def go_on(
    task: Task, parent: RunConfig, config: RunConfig, seed: int, state: Mapping[str, Any], *, repaired: bool
) -> Beginning:
    """The state of a training under ``config`` at the step of ``state``, which one under ``parent`` has left.

    Where neither config nor state was changed, it is that state: the run is the parent's continuation, to the bit.
    What a run remembers of itself (its first non-finite step, its best) begins empty. The weights must fit.
    """
    status = _status(state["status"]["eval"], state["status"]["last"])
    if config == parent and not repaired:
        return Beginning({**state, "status": status}, ())
    parts = _build(task, config, seed, state["network"])
    for name, buffer in parts.network.named_buffers():
        if name in state["buffers"]:
            buffer.copy_(state["buffers"][name])
    fresh = [
        *_take_optimizer(parts.optimizer, parent, config, state["optimizer"]),
        *_take_average_and_scale(parts.gate, state),
        *_take_guarding(parts.guarding, parent, config, state["guarding"]),
    ]
    parts.batchnorm.load_state_dict(state["batchnorm"])
    if parent.stability.gate == config.stability.gate:
        parts.gate.armed = state["gate_armed"]  # another gate has its first bad step still to come
    return Beginning({**state, **parts.state(), "nonfinite_streak": 0, "status": status}, tuple(fresh))


def _build(task: Task, config: RunConfig, seed: int, weights: Mapping[str, Any]) -> _Parts:
    network = build_network(task, config, seed, CPU)
    network.load_state_dict(dict(weights))
    optimizer = build_optimizers(task, network, config.optimizer)
    return _Parts(
        network,
        optimizer,
        build_gate(config, network, optimizer, CPU),
        BatchNormCare(RunningStatistics(network, config.stability.batchnorm.repair)),
        build_guarding(config.stability.guards),
    )


def _status(evaluation: Any, last: Any) -> dict[str, Any]:
    return {"first_nonfinite_step": None, "first_failure_step": None, "best": None, "eval": evaluation, "last": last}


def _take_optimizer(optimizer: Optimizers, parent: RunConfig, config: RunConfig, state: Mapping[str, Any]) -> list[str]:
    """Moments where the optimizer keeps the same ones; its numbers are those of the config, not of the moments."""
    before, now = parent.optimizer.name, config.optimizer.name
    if before != now and not {before, now} <= set(_SAME_MOMENTS):
        return [f"the state of the optimizer ({now} keeps another one than {before})"]
    numbers = [{key: value for key, value in group.items() if key != "params"} for group in optimizer.param_groups]
    try:
        optimizer.load_state_dict(state)
    except (ValueError, KeyError) as error:
        return [f"the state of the optimizers ({error})"]
    for group, own in zip(optimizer.param_groups, numbers, strict=True):
        group.update(own)
    return []


def _take_average_and_scale(gate: Gate, state: Mapping[str, Any]) -> list[str]:
    fresh = []
    if gate.ema is not None and state["ema"] is not None:
        gate.ema.load_state_dict(state["ema"])
    elif gate.ema is not None:
        fresh.append("the moving average (from the weights of this step)")
    if gate.loss_scale is not None and state["loss_scale"] is not None:
        gate.loss_scale.load_state_dict(state["loss_scale"])
    elif gate.loss_scale is not None:
        fresh.append("the loss scale")
    return fresh


def _take_guarding(guarding: Guarding | None, parent: RunConfig, config: RunConfig, state: Any) -> list[str]:
    """Budgets and learning rate of the ladder; what the guards know only where they see the same training."""
    if guarding is None:
        return []
    if state is None:
        return ["the guards (they were off)"]
    guarding.ladder.load_state_dict(state["ladder"])
    if config != parent.model_copy(update={"trainer": config.trainer}):
        return ["what the guards know (they knew another training)"]
    guarding.guards.load_state_dict(state["guards"])
    return []
