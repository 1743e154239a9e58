"""What a resumed attempt needs to go on as if nothing had happened, and how it is put back.

Random draws are keyed by seed, epoch and step, so that position is all there is to remember of them.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from hpcstab.checkpoint import CheckpointStore, Restored
from hpcstab.errors import CheckpointError
from hpcstab.training.ranks import shares_of

if TYPE_CHECKING:
    from torch import nn

    from hpcstab.stability.gate.gate import Gate
    from hpcstab.training.batchnorm import BatchNormCare
    from hpcstab.training.guarding import Guarding
    from hpcstab.training.optimizers import Optimizers
    from hpcstab.training.trainer import Trainer

_REMEMBERED = ("first_nonfinite_step", "first_failure_step", "best", "eval", "last")


def state_of(trainer: Trainer) -> dict[str, Any]:
    """The state before the trainer's next step, not copied."""
    return {
        **state_of_parts(trainer.network, trainer.optimizer, trainer.runner.gate, trainer.batchnorm, trainer.guarding),
        "objective": trainer.runner.objective.state_dict(),
        "step": trainer.step,
        "update": trainer.update,
        "nonfinite_streak": trainer.failure.streak,
        "status": {name: trainer.records[name] for name in _REMEMBERED},
    }


def facts_of(trainer: Trainer) -> dict[str, Any]:
    """What the manifest says of a state beside its health."""
    evaluation = trainer.records.evaluation
    return {
        "update": trainer.update,
        "attempt": trainer.records.attempt,
        "world_size": trainer.ranks.count,
        "seed": trainer.seed,
        "lr": trainer.config.optimizer.lr,
        **shares_of(trainer.config, trainer.ranks.count),
        "scheduled": trainer.step == 0 or trainer.cadence.saves_before(trainer.step),
        "evaluation": evaluation if evaluation and evaluation["step"] == trainer.step else None,
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


def newest_checkpoint(trainer: Trainer, scheduled_until: int | None = None) -> Restored | None:
    """The newest sound checkpoint, once all ranks have read it; see :meth:`CheckpointStore.newest`.

    No save is under way then.
    """
    try:
        return CheckpointStore(trainer.run).newest(trainer.device, scheduled_until=scheduled_until)
    finally:
        trainer.ranks.of_first(None)


def restore_state(trainer: Trainer) -> bool:
    """Put the newest sound checkpoint of the run back; False where there is none and the run begins.

    Raises:
        CheckpointError: there are checkpoints and none passes, or it does not fit the network.
    """
    if trainer.ranks.is_first:
        CheckpointStore(trainer.run).clean_up()
    trainer.ranks.of_first(None)  # no rank reads before that
    restored = newest_checkpoint(trainer)
    if restored is None:
        return False
    put_back(trainer, restored, _REMEMBERED)
    for reason in restored.refused:
        trainer.records.events.write("checkpoint_refused", trainer.step, trainer.update, reason=reason)
    if restored.manifest.get("begins_run"):
        parent = trainer.run.identity()["parent"]
        told = {key: parent[key] for key in ("run_id", "checkpoint", "weights_only", "repaired", "fresh")}
        trainer.records.events.write("branched", trainer.step, trainer.update, **told)
    else:
        trainer.records.events.write("resumed", trainer.step, trainer.update, checkpoint=restored.folder.name)
    return True


def put_back(trainer: Trainer, restored: Restored, remembered: tuple[str, ...]) -> None:
    """Make the training what it was at a checkpoint; of its status only what is ``remembered``.

    Raises:
        CheckpointError: it does not fit the network or the optimizer.
    """
    state: Mapping[str, Any] = restored.state
    try:
        trainer.network.load_state_dict(state["network"])
        trainer.optimizer.load_state_dict(state["optimizer"])
        buffers = dict(trainer.network.named_buffers())
        for name, buffer in state.get("buffers", {}).items():
            buffers[name].copy_(buffer)
    except (RuntimeError, ValueError, KeyError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{restored.folder}: does not fit this network or optimizer: {reason}") from None
    gate = trainer.runner.gate
    gate.armed = state["gate_armed"]
    if gate.ema:
        gate.ema.load_state_dict(state["ema"])
    if gate.loss_scale:
        gate.loss_scale.load_state_dict(state["loss_scale"])
    trainer.runner.objective.load_state_dict(state["objective"])
    trainer.batchnorm.load_state_dict(state["batchnorm"])
    if trainer.guarding:
        trainer.guarding.load_state_dict(state["guarding"])
    trainer.step, trainer.update = state["step"], state["update"]
    trainer.records.evaluation = restored.manifest.get("evaluation")
    is_evaluated = trainer.records.evaluation is not None or not trainer.cadence.evaluates_before(trainer.step)
    trainer.saved_at = trainer.step if is_evaluated else None  # else it is saved anew with its evaluation
    trainer.failure.streak = state["nonfinite_streak"]
    status = {name: state["status"][name] for name in remembered}
    trainer.records.status(step=trainer.step, update=trainer.update, **status)
