"""A failing step of a training as a capsule: all that is needed to run it again, anywhere."""

from __future__ import annotations

from typing import Any

from hpcstab.config import read_yaml_mapping
from hpcstab.errors import CheckpointError
from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.clipping import total_grad_norm
from hpcstab.stability.gate.loss_scale import MIN_SCALE
from hpcstab.stability.random_state import take_random_state
from hpcstab.stability.replay.capsule import MAX_CAPSULES, write_capsule
from hpcstab.training.step import Pending, Signals
from hpcstab.training.training import Training


def capsule_of(
    training: Training, pending: Pending, signals: Signals, reason: str
) -> tuple[dict[str, Any], dict[str, Any]]:
    """(state, facts) of a step that the gate has refused, where the training's state is that before it."""
    gate = training.runner.gate
    training.runner.seed_step(pending.step)
    training.optimizer.set_learning_rate(pending.lr)  # the steps in flight have set theirs
    state: dict[str, Any] = {
        "network": training.network.state_dict(),
        "buffers": dict(training.network.named_buffers()),
        "optimizer": training.optimizer.state_dict(),
        "batch": pending.item.batch,
        "random": take_random_state(),
        "loss_scale": gate.loss_scale.state_dict() if gate.loss_scale else None,
        "ema": gate.ema.state_dict() if gate.ema else None,
        "objective": training.runner.objective.state_dict(),
    }
    last = training.records["last"] or {}
    facts = {
        "model": _model_of(training),
        "config": training.config.model_dump(mode="json"),
        "steps_per_epoch": training.batches.steps_per_epoch,
        "step": pending.step,
        "epoch": pending.item.epoch,
        "update": training.update,
        "attempt": training.records.attempt,
        "rank": training.ranks.rank,
        "world_size": training.ranks.count,
        "device": training.device.type,
        "ids": list(pending.item.ids),
        "reason": reason,
        "figures": {name: repr(value) for name, value in signals.figures.items()},
        "lr": pending.lr,
        "lr_before": last.get("lr"),
        "seed": training.seed,
        "run_id": training.run.run_id,
    }
    return state, facts


def _model_of(training: Training) -> str:
    """The reference in the run's config.yaml; a training that was built without one names the class of its task."""
    path = training.run.config_yaml
    if path.is_file():
        return str(read_yaml_mapping(path)["model"])
    return f"{type(training.task).__module__}:{type(training.task).__qualname__}"


def keep_failing_step(training: Training, pending: Pending, signals: Signals, reason: str) -> bool:
    """Keep the step, unless it only overflows the loss scale (True): that is ordinary, and nothing to be explained.

    Such a step runs once more with a scale of 1, refused whatever it is, and leaves nothing behind. Where it fails even
    so, that run is the one to keep: what it replays is the failure alone, and no overflow beside it.
    """
    gate = training.runner.gate
    scale = gate.loss_scale
    if reason != "nonfinite_gradient" or scale is None or not scale.can_back_off:
        _write_capsule(training, pending, signals, reason)
        return False
    before = scale.state_dict()
    scale.value.fill_(MIN_SCALE)
    with gate.held():
        signals = training.runner.launch(pending.item, pending.lr, probes=False, checks=False).read()
    gate.release(pending.step, armed=True)
    if signals.bad:
        _write_capsule(training, pending, signals, signals.reason)
    scale.load_state_dict(before)
    return not signals.bad


def _write_capsule(training: Training, pending: Pending, signals: Signals, reason: str) -> None:
    """Batch, random state and the state of the failing step; a disk that is full does not end the run for it.

    Of several ranks the one whose own share is at fault writes it: after they have been averaged, the gradients of
    all are.
    """
    events, step = training.records.events, pending.step
    guilty = _guilty_rank(training, pending, signals)
    if training.ranks.of_first(len(list(training.run.capsules.glob("step_*")))) >= MAX_CAPSULES:
        events.write("capsule_left_out", step, training.update, reason=f"this run has {MAX_CAPSULES} already")
        return
    folder, error = training.run.capsule(step), ""
    if guilty == training.ranks.rank:
        try:
            write_capsule(folder, *capsule_of(training, pending, signals, reason))
        except CheckpointError as problem:
            error = str(problem)
    (error,) = training.ranks.any_of([error] if error else []) or [""]
    if error:
        events.write("capsule_left_out", step, training.update, reason=error)
        return
    events.write("capsule_saved", step, training.update, reason=reason, capsule=folder.name, guilty_rank=guilty)


def _guilty_rank(training: Training, pending: Pending, signals: Signals) -> int:
    """The first rank whose loss or gradients are not finite before they are averaged.

    Where none is, that with the largest gradient norm (a spike, or a norm that overflows); 0 for bad buffers.
    """
    if training.ranks.count == 1:
        return 0
    runner, gate = training.runner, training.runner.gate
    runner.seed_step(pending.step)
    training.optimizer.zero_grad()
    training.ranks.take_buffers_of_first(gate.buffers.current())
    loss, _, _ = runner.gradients(pending.item)
    gradients = [(name, p.grad) for name, p in training.network.named_parameters() if p.grad is not None]
    norm = float(total_grad_norm(training.network.parameters()))
    gate.buffers.put_back(pending.step)
    is_bad = bool(nonfinite_names([("loss", loss.detach()), *gradients]))
    of_all = training.ranks.of_all((is_bad, norm if signals.buffers_finite and not is_bad else 0.0))
    return of_all.index(max(of_all))
