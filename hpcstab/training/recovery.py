"""What the host does about a refused step: it goes back to it, keeps what is needed to replay it, and runs it again.

An open gate has refused its first bad step only to be looked at: it runs again and is applied, as in a bare loop.
A closed one runs it once more, to tell a fault of the batch from one of the machine, and then leaves the batch out.
Under fp16 a gradient that overflows is first tried again with half the loss scale; no capsule is kept of that.
"""

from __future__ import annotations

import time

from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.retrial import Retrial
from hpcstab.training.bad_terms import ramp_bad_terms_again
from hpcstab.training.batchnorm import check_statistics_now
from hpcstab.training.capsules import keep_failing_step
from hpcstab.training.ends import StateFault
from hpcstab.training.reading import judge_row, take_in
from hpcstab.training.recording import record, record_held, record_refusal
from hpcstab.training.step import Pending, Signals
from hpcstab.training.training import Training


def recover(training: Training, pending: Pending, signals: Signals) -> None:
    """Bring the training past ``pending``, which the device has refused and latched.

    Raises:
        StateFault: the state itself is not finite.
        Diverged: the run has used up its budget of non-finite steps.
    """
    held = list(training.in_flight)
    training.in_flight.clear()
    training.items.go_back(1 + len(held))
    training.step = pending.step
    gate = training.runner.gate
    gate.release(pending.step, armed=True)
    reason = signals.reason
    only_overflows = keep_failing_step(training, pending, signals, reason)
    if gate.mode != "closed":
        gate.armed = False
        _run_once(training)
        gate.armed = only_overflows  # then the first bad step is still to come
        return
    check_statistics_now(training, "refusal")
    sick = training.ranks.any_of(nonfinite_names(training.runner.state_tensors().items()))
    if not sick:
        _run_until_decided(training, pending, signals, reason)
    else:
        record(training, pending, signals, "held")
    record_held(training, held)
    if sick:
        reason = f"before step {pending.step} {len(sick)} tensors of the state were non-finite, first {sick[0]}"
        training.records.events.write("state_nonfinite", pending.step, training.update, reason=reason, names=sick[:20])
        training.records.nonfinite(pending.step, what="state")
        raise StateFault(pending.step, reason)


def _run_once(training: Training) -> None:
    """Run the step again, with the gate as it now is, and read it at once."""
    started = time.perf_counter()
    pending = training.launch(next(training.items), started)
    training.step += 1
    pending.seconds = time.perf_counter() - started
    take_in(training, pending, training.read(pending))


def _run_until_decided(training: Training, pending: Pending, signals: Signals, reason: str) -> None:
    """Run the step again until it is applied, or until it is clear that it cannot be."""
    gate, events = training.runner.gate, training.records.events
    retrial = Retrial(gate.loss_scale)
    while signals.bad:
        verdict = retrial.verdict(reason)
        if verdict == "skipped":
            _leave_out(training, pending, signals, reason)
            return
        record(training, pending, signals, verdict)
        if verdict == "rescaled" and gate.loss_scale is not None:
            events.write("rescaled", pending.step, training.update, loss_scale=float(gate.loss_scale.value))
        else:
            training.records.nonfinite(pending.step, what="step", reason=reason)
        pending = training.launch(next(training.items), time.perf_counter())
        signals = training.read(pending)
        if signals.bad:
            gate.release(pending.step, armed=True)
            training.items.go_back(1)
            reason = _reason_now(training, signals)
    training.step = pending.step + 1
    if retrial.was_repeated:
        events.write("not_reproduced", pending.step, training.update, reason=reason)
    take_in(training, pending, signals)


def _leave_out(training: Training, pending: Pending, signals: Signals, reason: str) -> None:
    """Go on behind the batch, as if it had never come."""
    if reason != "spike":
        ramp_bad_terms_again(training, pending)
    next(training.items)
    training.step = pending.step + 1
    row = record(training, pending, signals, "skipped")
    record_refusal(training, pending, signals, reason)
    judge_row(training, row)


def _reason_now(training: Training, signals: Signals) -> str:
    """The same from gradients that are still there: their norm can overflow while they are finite."""
    reason = signals.reason
    if reason != "nonfinite_gradient":
        return reason
    gradients = ((name, p.grad) for name, p in training.network.named_parameters() if p.grad is not None)
    return reason if nonfinite_names(gradients) else "norm_overflow"
