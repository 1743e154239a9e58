"""What follows from a step that was read, once the gate's decision about it stays."""

from __future__ import annotations

from typing import Any

from hpcstab.training.bad_terms import note_nonfinite_terms
from hpcstab.training.batchnorm import read_statistics
from hpcstab.training.ends import Diverged
from hpcstab.training.evaluating import check_state, note_nonfinite_buffers
from hpcstab.training.recording import record, record_refusal
from hpcstab.training.step import Pending, Signals
from hpcstab.training.training import Training


def take_in(training: Training, pending: Pending, signals: Signals) -> None:
    """Record a step that was applied, or refused for good, and look at what it left.

    Raises:
        Diverged: the run has used up its budget of non-finite steps, or its parameters are not finite.
    """
    row = record(training, pending, signals, "skipped" if signals.refused else "applied")
    if signals.refused:
        record_refusal(training, pending, signals, signals.reason)
    judge_row(training, row)
    leaves_nothing = signals.refused and training.runner.gate.mode == "closed"
    if not (signals.buffers_finite or leaves_nothing):
        note_first_nonfinite_buffers(training, pending)
    read_statistics(training, pending)
    if not signals.state_finite:
        check_state(training, after_step=pending.step)


def judge_row(training: Training, row: dict[str, Any]) -> None:
    """Record firsts of a row; end the run where it has diverged."""
    note_nonfinite_terms(training, row)
    verdict = training.failure.see(row, training.records)
    if verdict:
        raise Diverged(verdict)


def note_first_nonfinite_buffers(training: Training, pending: Pending) -> None:
    """Where they are the first that is not finite, in the step that made them so and not at the next look at the state.

    Their names are those of now: those that an open gate's first bad step made so, since that is read at once; none
    where they were repaired on the device in between.
    """
    if training.records["first_nonfinite_step"] is None:
        note_nonfinite_buffers(training, pending.step)
        training.records.nonfinite(pending.step, what="buffers")
