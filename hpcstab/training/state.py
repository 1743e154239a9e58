"""What a resumed attempt needs to go on as if nothing had happened, and how it is put back.

Random draws are keyed by seed, epoch and step, so that position is all there is to remember of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import nn

from hpcstab.checkpoint import CheckpointStore, Restored
from hpcstab.errors import CheckpointError
from hpcstab.stability.gate.gate import Gate
from hpcstab.training.batchnorm_care import BatchNormCare
from hpcstab.training.guarding import Guarding
from hpcstab.training.optimizers import Optimizers
from hpcstab.training.ranks import shares_of
from hpcstab.training.training import Training

_REMEMBERED = ("first_nonfinite_step", "first_failure_step", "best", "eval", "last")


def state_of(training: Training) -> dict[str, Any]:
    """The state before the next step, not copied."""
    return {
        **state_of_parts(
            training.network, training.optimizer, training.runner.gate, training.batchnorm, training.guarding
        ),
        "objective": training.runner.objective.state_dict(),
        "step": training.step,
        "update": training.update,
        "nonfinite_streak": training.failure.streak,
        "status": {name: training.records[name] for name in _REMEMBERED},
    }


def facts_of(training: Training) -> dict[str, Any]:
    """What the manifest says of a state beside its health."""
    evaluation = training.records.evaluation
    return {
        "update": training.update,
        "attempt": training.records.attempt,
        "world_size": training.ranks.count,
        "seed": training.seed,
        "lr": training.config.optimizer.lr,
        **shares_of(training.config, training.ranks.count),
        "scheduled": training.step == 0 or training.cadence.saves_before(training.step),
        "evaluation": evaluation if evaluation and evaluation["step"] == training.step else None,
    }


def state_of_parts(
    network: nn.Module, optimizer: Optimizers, gate: Gate, batchnorm: BatchNormCare, guarding: Guarding | None
) -> dict[str, Any]:
    """What a step changes, as it stands in a checkpoint, not copied."""
    weights = network.state_dict()
    return {
        "network": weights,
        "buffers": {name: buffer for name, buffer in network.named_buffers() if name not in weights},
        "optimizer": optimizer.state_dict(),
        "ema": gate.ema.state_dict() if gate.ema else None,
        "loss_scale": gate.loss_scale.state_dict() if gate.loss_scale else None,
        "gate_armed": gate.armed,
        "batchnorm": batchnorm.state_dict(),
        "guarding": guarding.state_dict() if guarding else None,
    }


def newest_checkpoint(training: Training, scheduled_until: int | None = None) -> Restored | None:
    """The newest sound checkpoint, once all ranks have read it; see :meth:`CheckpointStore.newest`.

    No save is under way then.
    """
    try:
        return CheckpointStore(training.run).newest(training.device, scheduled_until=scheduled_until)
    finally:
        training.ranks.of_first(None)


def restore_state(training: Training) -> bool:
    """Put the newest sound checkpoint of the run back; False where there is none and the run begins.

    Raises:
        CheckpointError: there are checkpoints and none passes, or it does not fit the network.
    """
    if training.ranks.is_first:
        CheckpointStore(training.run).clean_up()
    training.ranks.of_first(None)  # no rank reads before that
    restored = newest_checkpoint(training)
    if restored is None:
        return False
    put_back(training, restored, _REMEMBERED)
    for reason in restored.refused:
        training.records.events.write("checkpoint_refused", training.step, training.update, reason=reason)
    if restored.manifest.get("begins_run"):
        parent = training.run.identity()["parent"]
        told = {key: parent[key] for key in ("run_id", "checkpoint", "weights_only", "repaired", "fresh")}
        training.records.events.write("branched", training.step, training.update, **told)
    else:
        training.records.events.write("resumed", training.step, training.update, checkpoint=restored.folder.name)
    return True


def put_back(training: Training, restored: Restored, remembered: tuple[str, ...]) -> None:
    """Make the training what it was at a checkpoint; of its status only what is ``remembered``.

    Raises:
        CheckpointError: it does not fit the network or the optimizer.
    """
    state: Mapping[str, Any] = restored.state
    try:
        training.network.load_state_dict(state["network"])
        training.optimizer.load_state_dict(state["optimizer"])
        buffers = dict(training.network.named_buffers())
        for name, buffer in state.get("buffers", {}).items():
            buffers[name].copy_(buffer)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{restored.folder}: does not fit this network or optimizer: {reason}") from None
    gate = training.runner.gate
    gate.armed = state["gate_armed"]
    if gate.ema:
        gate.ema.load_state_dict(state["ema"])
    if gate.loss_scale:
        gate.loss_scale.load_state_dict(state["loss_scale"])
    training.runner.objective.load_state_dict(state["objective"])
    training.batchnorm.load_state_dict(state["batchnorm"])
    if training.guarding:
        training.guarding.load_state_dict(state["guarding"])
    training.step, training.update = state["step"], state["update"]
    training.records.evaluation = restored.manifest.get("evaluation")
    is_evaluated = training.records.evaluation is not None or not training.cadence.evaluates_before(training.step)
    training.saved_at = training.step if is_evaluated else None  # else it is saved anew with its evaluation
    training.failure.streak = state["nonfinite_streak"]
    status = {name: state["status"][name] for name in remembered}
    training.records.status(step=training.step, update=training.update, **status)
