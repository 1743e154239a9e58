"""What a step leaves in the files of its run: a row, its probes, and what is said about a refusal."""

from __future__ import annotations

import contextlib
import math
import time
from collections.abc import Iterable
from typing import Any, Literal

from hpcstab.training.measure import peak_memory_gib
from hpcstab.training.step import Pending, Signals
from hpcstab.training.training import Training
from hpcstab.training.verdicts import show_to_guards

Outcome = Literal["applied", "skipped", "held", "rescaled"]
MAX_IDS = 20


def record(training: Training, pending: Pending, signals: Signals, outcome: Outcome) -> dict[str, Any]:
    """The row of a step in metrics.csv, with its probes where it had some and was applied; an applied one counts."""
    row: dict[str, Any] = {
        "step": pending.step,
        "update": training.update,
        "epoch": pending.item.epoch,
        "attempt": training.records.attempt,
        "time_s": time.perf_counter() - training.began,
        "step_time_s": pending.seconds,
        "peak_mem_gib": peak_memory_gib(training.device),
        "loss_finite": math.isfinite(signals.figures["loss"]),
        "grad_finite": math.isfinite(signals.figures["grad_norm"]),
        "lr": pending.lr,
        "outcome": outcome,
        **signals.figures,
    }
    training.records.metrics.append(row)
    training.tensorboard.row(pending.step, row)
    show_to_guards(training, pending, signals, outcome)
    if outcome == "applied":
        _record_probes(training, pending)
        training.update += 1
    last = {name: row[name] for name in ("loss", "grad_norm", "lr", "step_time_s")}
    training.records.status(step=pending.step + 1, update=training.update, last=last)
    return row


def record_refusal(training: Training, pending: Pending, signals: Signals, reason: str) -> None:
    """The event of a step that stays refused: why, with which figures, on which samples."""
    figures = {name: signals.figures[name] for name in ("loss", "grad_norm")}
    ids = training.ranks.any_of(pending.item.ids)[:MAX_IDS]
    training.records.events.write("step_refused", pending.step, training.update, reason=reason, ids=ids, **figures)


def record_held(training: Training, steps: Iterable[Pending]) -> None:
    """The rows of steps that the device ran on a state that is gone back from."""
    for pending in steps:
        record(training, pending, pending.read(), "held")


def record_the_rest(training: Training) -> None:
    """The rows of the steps in flight, where a crash ends the training; that crash is the news, not one in here."""
    with contextlib.suppress(Exception):
        while training.in_flight:
            pending = training.in_flight.popleft()
            signals = pending.read()
            record(training, pending, signals, "held" if signals.refused else "applied")


def _record_probes(training: Training, pending: Pending) -> None:
    position = {"step": pending.step, "update": training.update, "attempt": training.records.attempt}
    for module, grad_norm, update_norm in pending.norms.read() if pending.norms else ():
        norms = {"module": module, "grad_norm": grad_norm, "update_norm": update_norm}
        training.records.probes.append(position | norms)
    for term, weight, grad_norm, share in pending.term_norms.read() if pending.term_norms else ():
        figures = {"term": term, "weight": weight, "grad_norm": grad_norm, "grad_share": share}
        training.records.terms.append(position | figures)
