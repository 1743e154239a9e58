"""Saving while the training goes on: a step waits for the copy of the state, a thread of rank 0 writes it.

At most one save is under way: the next one waits for it, and says for how long. Each is complete before the training
reads a checkpoint, answers a signal or ends.

When a write fails (a full disk, a folder that became read-only, an I/O error), an event says why, the checkpoints
before it stay as they are, and the thread tries again until the next save, a rollback, a signal or the end asks for the
outcome. If it still fails then, the training goes on as long as some healthy checkpoint of the run exists. Where there
is none it ends with a CheckpointError: nothing would be left of it. The state at the end of a training is what it was
for: there it is tried for ``LAST_PATIENCE_S`` before the attempt ends with that error, and a resume makes it again.
"""

from __future__ import annotations

import contextlib
import time
from collections.abc import Callable, Mapping
from typing import Any

from hpcstab.checkpoint import CheckpointStore
from hpcstab.errors import CheckpointError
from hpcstab.stability.finite import nonfinite_names
from hpcstab.training.state import facts_of, state_of
from hpcstab.training.training import Training

LAST_PATIENCE_S = 600.0
_MAX_NAMED = 20


def save_state(training: Training, *, as_evidence: bool = False) -> None:
    """Copy the state before the next step; rank 0 begins to write it as a checkpoint.

    Args:
        as_evidence: of how a run ended, which is known; then no failure of the disk changes it.

    Raises:
        CheckpointError: the save before it failed and there is no healthy checkpoint, or the state cannot be saved.
    """
    started = time.perf_counter()
    failed = finish_save(training)
    if not as_evidence:
        _require_healthy(training, failed)
    training.saved_at = training.step
    if not training.ranks.is_first:
        return
    waited = time.perf_counter()
    saver, facts = training.saver, facts_of(training)
    copied = saver.snapshot.take({"state": state_of(training), "watched": training.runner.state_tensors()})
    saver.position = training.step, training.update
    saver.seconds = {"wait_s": waited - started, "copy_s": time.perf_counter() - waited}
    store = CheckpointStore(training.run)
    saver.writer.begin(lambda: _write(store, facts, copied))


def finish_save(training: Training, may_try_on: Callable[[], bool] = lambda: False) -> str | None:
    """Wait until no save is under way, on all ranks; why the last one failed, or None."""
    failed = training.saver.writer.finish(may_try_on) if training.ranks.is_first else None
    tell_saves(training)
    return training.ranks.of_first(failed)


def finish_last_save(training: Training, state: str) -> None:
    """Wait for the last save of an attempt that ends as ``state``.

    Raises:
        CheckpointError: it failed, and a completed training has lost its end or a stopped one all that it has done.
    """
    deadline = time.monotonic() + (LAST_PATIENCE_S if state == "completed" else 0.0)

    def may_try_on() -> bool:
        tell_saves(training)
        training.records.heartbeat()
        return time.monotonic() < deadline and not training.stop_requested()

    failed = finish_save(training, may_try_on)
    if failed and state == "completed":
        raise CheckpointError(f"the trained state could not be saved; resume the run to make it again: {failed}")
    if state == "stopped":
        _require_healthy(training, failed)


def close_saver(training: Training) -> None:
    """Let what is under way come to its end, however the attempt ended; that is the news, not an error in here."""
    with contextlib.suppress(Exception):
        training.saver.writer.finish()
        tell_saves(training)


def tell_saves(training: Training) -> None:
    """Write down what came of saves since the last call: every success, and of failures the first in a row."""
    saver = training.saver
    for done in saver.writer.tries():
        if done.error is None:
            figures: dict[str, Any] = {**saver.seconds, "write_s": done.seconds, "tries": done.number}
            training.records.events.write("checkpoint_saved", *saver.position, healthy=done.result, **figures)
        elif done.number == 1:
            training.records.events.write("checkpoint_failed", *saver.position, reason=done.error)


def _write(store: CheckpointStore, facts: Mapping[str, Any], copied: Callable[[], dict[str, Any]]) -> bool:
    """Write a copied state with its verdict; whether it is healthy."""
    copy = copied()
    sick = nonfinite_names(copy["watched"].items())
    step = copy["state"]["step"]
    store.save(step, copy["state"], {**facts, "nonfinite": sick[:_MAX_NAMED]}, healthy=not sick)
    return not sick


def _require_healthy(training: Training, failed: str | None) -> None:
    if failed and not training.ranks.of_first(CheckpointStore(training.run).has_healthy()):
        raise CheckpointError(f"this run has no healthy checkpoint, and none could be written: {failed}")
