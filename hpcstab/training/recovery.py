"""What the host does about a refused step: it goes back to it, keeps what is needed to replay it, and runs it again.

An open gate has refused its first bad step only to be looked at: it runs again and is applied, as in a bare loop.
A closed one runs it once more, to tell a fault of the batch from one of the machine, and then leaves the batch out.
Under fp16 a gradient that overflows is first tried again with half the loss scale; no capsule is kept of that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hpcstab.errors import CheckpointError
from hpcstab.stability.capsule import MAX_CAPSULES, write_capsule
from hpcstab.stability.clipping import total_grad_norm
from hpcstab.stability.loss_scale import MIN_SCALE
from hpcstab.stability.retrial import Retrial
from hpcstab.stability.retrial import reason_of as reason_of_figures
from hpcstab.training.batchnorm import check_statistics_now
from hpcstab.training.capsules import capsule_of
from hpcstab.training.ends import StateFault
from hpcstab.training.measure import nonfinite_names
from hpcstab.training.terms import ramp_bad_terms_again

if TYPE_CHECKING:
    from hpcstab.training.step import Pending, Signals
    from hpcstab.training.trainer import Trainer


def recover(trainer: Trainer, pending: Pending, signals: Signals) -> None:
    """Bring the training past ``pending``, which the device has refused and latched.

    Raises:
        StateFault: the state itself is not finite.
        Diverged: the run has used up its budget of non-finite steps.
    """
    held = list(trainer.in_flight)
    trainer.in_flight.clear()
    trainer.items.go_back(1 + len(held))
    trainer.step = pending.step
    gate = trainer.runner.gate
    gate.release(pending.step, armed=True)
    reason = reason_of(signals)
    only_overflows = _write_capsule_of_failure(trainer, pending, signals, reason)
    if gate.mode != "closed":
        gate.armed = False
        _run_once(trainer)
        gate.armed = only_overflows  # then the first bad step is still to come
        return
    check_statistics_now(trainer, "refusal")
    sick = trainer.ranks.any_of(nonfinite_names(trainer.runner.state_tensors().items()))
    if not sick:
        _run_until_decided(trainer, pending, signals, reason)
    else:
        trainer.record(pending, signals, "held")
    for late in held:
        trainer.record(late, late.read(), "held")
    if sick:
        reason = f"before step {pending.step} {len(sick)} tensors of the state were non-finite, first {sick[0]}"
        trainer.records.events.write("state_nonfinite", pending.step, trainer.update, reason=reason, names=sick[:20])
        trainer.records.nonfinite(pending.step, what="state")
        raise StateFault(pending.step, reason)


def reason_of(signals: Signals) -> str:
    """Why a step was refused, as far as its signals tell."""
    figures = signals.figures
    return reason_of_figures(figures["loss"], figures["grad_norm"], buffers_finite=signals.buffers_finite)


def _write_capsule_of_failure(trainer: Trainer, pending: Pending, signals: Signals, reason: str) -> bool:
    """Keep the step, unless it only overflows the loss scale (True): that is ordinary, and nothing to be explained.

    Such a step runs once more with a scale of 1, refused by the latch, and leaves nothing behind. Where it fails even
    so, that run is the one to keep: what it replays is the failure alone, and no overflow beside it.
    """
    gate = trainer.runner.gate
    scale = gate.loss_scale
    if reason != "nonfinite_gradient" or scale is None or not scale.can_back_off:
        _write_capsule(trainer, pending, signals, reason)
        return False
    before = scale.state_dict()
    scale.value.fill_(MIN_SCALE)
    gate.latch.fill_(1.0)
    signals = trainer.runner.launch(pending.item, pending.lr, probes=False, checks=False).read()
    gate.release(pending.step, armed=True)
    if signals.bad:
        _write_capsule(trainer, pending, signals, reason_of(signals))
    scale.load_state_dict(before)
    return not signals.bad


def _run_once(trainer: Trainer) -> None:
    """Run the step again, with the gate as it now is, and read it at once."""
    started = time.perf_counter()
    pending = trainer.launch(next(trainer.items), started)
    trainer.step += 1
    pending.seconds = time.perf_counter() - started
    trainer.in_flight.append(pending)
    trainer.settle()


def _run_until_decided(trainer: Trainer, pending: Pending, signals: Signals, reason: str) -> None:
    """Run the step again until it is applied, or until it is clear that it cannot be."""
    gate, events = trainer.runner.gate, trainer.records.events
    retrial = Retrial(gate.loss_scale)
    while signals.bad:
        verdict = retrial.verdict(reason)
        if verdict == "skipped":
            _leave_out(trainer, pending, signals, reason)
            return
        trainer.record(pending, signals, verdict)
        if verdict == "rescaled" and gate.loss_scale is not None:
            events.write("rescaled", pending.step, trainer.update, loss_scale=float(gate.loss_scale.value))
        else:
            trainer.records.nonfinite(pending.step, what="step", reason=reason)
        pending = trainer.launch(next(trainer.items), time.perf_counter())
        signals = pending.read()
        if signals.bad:
            gate.release(pending.step, armed=True)
            trainer.items.go_back(1)
            reason = _reason_now(trainer, signals)
    trainer.step = pending.step + 1
    if retrial.was_repeated:
        events.write("not_reproduced", pending.step, trainer.update, reason=reason)
    trainer.judge_row(trainer.record(pending, signals, "applied"))
    trainer.look_behind(pending, signals)


def _leave_out(trainer: Trainer, pending: Pending, signals: Signals, reason: str) -> None:
    """Go on behind the batch, as if it had never come."""
    if reason != "spike":
        ramp_bad_terms_again(trainer, pending)
    next(trainer.items)
    trainer.step = pending.step + 1
    row = trainer.record(pending, signals, "skipped")
    figures = {name: signals.figures[name] for name in ("loss", "grad_norm")}
    trainer.records.events.write(
        "step_refused",
        pending.step,
        trainer.update,
        reason=reason,
        ids=trainer.ranks.any_of(pending.item.ids)[:20],
        **figures,
    )
    trainer.judge_row(row)


def _reason_now(trainer: Trainer, signals: Signals) -> str:
    """The same from gradients that are still there: their norm can overflow while they are finite."""
    reason = reason_of(signals)
    if reason != "nonfinite_gradient":
        return reason
    gradients = ((name, p.grad) for name, p in trainer.network.named_parameters() if p.grad is not None)
    return reason if nonfinite_names(gradients) else "norm_overflow"


def _write_capsule(trainer: Trainer, pending: Pending, signals: Signals, reason: str) -> None:
    """Batch, random state and the state of the failing step; a disk that is full does not end the run for it.

    Of several ranks the one whose own share is at fault writes it: after they have been averaged, the gradients of
    all are.
    """
    events, step = trainer.records.events, pending.step
    guilty = _guilty_rank(trainer, pending, signals)
    if trainer.ranks.of_first(len(list(trainer.run.capsules.glob("step_*")))) >= MAX_CAPSULES:
        events.write("capsule_left_out", step, trainer.update, reason=f"this run has {MAX_CAPSULES} already")
        return
    folder, error = trainer.run.capsule(step), ""
    if guilty == trainer.ranks.rank:
        try:
            write_capsule(folder, *capsule_of(trainer, pending, signals, reason))
        except CheckpointError as problem:
            error = str(problem)
    (error,) = trainer.ranks.any_of([error] if error else []) or [""]
    if error:
        events.write("capsule_left_out", step, trainer.update, reason=error)
        return
    events.write("capsule_saved", step, trainer.update, reason=reason, capsule=folder.name, guilty_rank=guilty)


def _guilty_rank(trainer: Trainer, pending: Pending, signals: Signals) -> int:
    """The first rank whose loss or gradients are not finite before they are averaged.

    Where none is, that with the largest gradient norm (a spike, or a norm that overflows); 0 for bad buffers.
    """
    if trainer.ranks.count == 1:
        return 0
    runner, gate = trainer.runner, trainer.runner.gate
    runner.seed_step(pending.step)
    trainer.optimizer.zero_grad(set_to_none=True)
    trainer.ranks.take_buffers_of_first(gate.buffers.current())
    loss, _, _ = runner.gradients(pending.item)
    gradients = [(name, p.grad) for name, p in trainer.network.named_parameters() if p.grad is not None]
    norm = float(total_grad_norm(trainer.network.parameters()))
    gate.buffers.put_back(pending.step)
    is_bad = bool(nonfinite_names([("loss", loss.detach()), *gradients]))
    of_all = trainer.ranks.of_all((is_bad, norm if signals.buffers_finite and not is_bad else 0.0))
    return of_all.index(max(of_all))
