"""A failing step of a training as a capsule: all that is needed to run it again, anywhere."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from hpcstab.config import read_yaml_mapping
from hpcstab.stability.random_state import take_random_state
from hpcstab.training.optimizers import set_learning_rate

if TYPE_CHECKING:
    from hpcstab.training.step import Pending, Signals
    from hpcstab.training.trainer import Trainer


def capsule_of(
    trainer: Trainer, pending: Pending, signals: Signals, reason: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, facts) of a step that the gate has refused, where the trainer's state is that before it."""
    gate = trainer.runner.gate
    trainer.runner.seed_step(pending.step)
    set_learning_rate(trainer.optimizer, pending.lr)  # the steps in flight have set theirs
    state: dict[str, Any] = {
        "network": trainer.network.state_dict(),
        "buffers": dict(trainer.network.named_buffers()),
        "optimizer": trainer.optimizer.state_dict(),
        "batch": pending.item.batch,
        "random": take_random_state(),
        "loss_scale": gate.loss_scale.state_dict() if gate.loss_scale else None,
        "ema": gate.ema.state_dict() if gate.ema else None,
        "objective": trainer.runner.objective.state_dict(),
    }
    last = trainer.records["last"] or {}
    facts = {
        "model": _model_of(trainer),
        "config": trainer.config.model_dump(mode="json"),
        "steps_per_epoch": trainer.batches.steps_per_epoch,
        "step": pending.step,
        "epoch": pending.item.epoch,
        "update": trainer.update,
        "attempt": trainer.records.attempt,
        "rank": trainer.ranks.rank,
        "world_size": trainer.ranks.count,
        "device": trainer.device.type,
        "ids": list(pending.item.ids),
        "reason": reason,
        "figures": {name: repr(value) for name, value in signals.figures.items()},
        "lr": pending.lr,
        "lr_before": last.get("lr"),
        "seed": trainer.seed,
        "run_id": trainer.run.run_id,
    }
    return state, facts


def _model_of(trainer: Trainer) -> str:
    """The reference in the run's config.yaml; a trainer that was built without one names the class of its task."""
    path = trainer.run.config_yaml
    if path.is_file():
        return str(read_yaml_mapping(path)["model"])
    return f"{type(trainer.task).__module__}:{type(trainer.task).__qualname__}"
