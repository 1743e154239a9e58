"""What the host does about a refused step: it goes back to it, keeps what is needed to replay it, and runs it again.

An open gate has refused its first bad step only to be looked at: it runs again and is applied, as in a bare loop.
A closed one runs it once more, to tell a fault of the batch from one of the machine, and then leaves the batch out.
Under fp16 a gradient that overflows is first tried again with half the loss scale; no capsule is kept of that.
"""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.retrial import Retrial
from hpcstab.training.batchnorm import check_statistics_now
from hpcstab.training.capsules import keep_failing_step
from hpcstab.training.ends import StateFault
from hpcstab.training.recording import record, record_held, record_refusal
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
    reason = signals.reason
    only_overflows = keep_failing_step(trainer, pending, signals, reason)
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
        record(trainer, pending, signals, "held")
    record_held(trainer, held)
    if sick:
        reason = f"before step {pending.step} {len(sick)} tensors of the state were non-finite, first {sick[0]}"
        trainer.records.events.write("state_nonfinite", pending.step, trainer.update, reason=reason, names=sick[:20])
        trainer.records.nonfinite(pending.step, what="state")
        raise StateFault(pending.step, reason)


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
        record(trainer, pending, signals, verdict)
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
    trainer.judge_row(record(trainer, pending, signals, "applied"))
    trainer.look_behind(pending, signals)


def _leave_out(trainer: Trainer, pending: Pending, signals: Signals, reason: str) -> None:
    """Go on behind the batch, as if it had never come."""
    if reason != "spike":
        ramp_bad_terms_again(trainer, pending)
    next(trainer.items)
    trainer.step = pending.step + 1
    row = record(trainer, pending, signals, "skipped")
    record_refusal(trainer, pending, signals, reason)
    trainer.judge_row(row)


def _reason_now(trainer: Trainer, signals: Signals) -> str:
    """The same from gradients that are still there: their norm can overflow while they are finite."""
    reason = signals.reason
    if reason != "nonfinite_gradient":
        return reason
    gradients = ((name, p.grad) for name, p in trainer.network.named_parameters() if p.grad is not None)
    return reason if nonfinite_names(gradients) else "norm_overflow"
