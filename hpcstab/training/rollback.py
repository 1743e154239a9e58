"""Going back to a healthy checkpoint, within the run.

After a fault of the state (a non-finite parameter, moment, buffer or average) everything is as the checkpoint has it,
learning rate and statistics included: a fault that does not return leaves a run that equals one without it, bit for
bit. After a verdict of the guards the learning rate is a smaller one, since the same steps would come to the same end.
What the run has recorded about itself stays, and so do the budgets.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcstab.checkpoint import CheckpointStore
from hpcstab.errors import CheckpointError
from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.guards.guards import Verdict
from hpcstab.training.ends import Halted, StateFault
from hpcstab.training.saving import finish_save, save_state
from hpcstab.training.state import newest_checkpoint, put_back
from hpcstab.training.training import Training


def check_whole_state(training: Training, after_step: int | None = None) -> None:
    """Look at parameters, buffers, optimizer state and moving average.

    Args:
        after_step: the device found the state non-finite after this step, whatever it is by now.

    Raises:
        StateFault: some of it is not finite.
    """
    sick = training.ranks.any_of(nonfinite_names(training.runner.state_tensors().items()))
    if not sick and after_step is None:
        return
    step = training.step if after_step is None else after_step + 1
    found = f"{len(sick)} tensors of the state were non-finite, first {sick[0]}" if sick else "the state was non-finite"
    reason = f"before step {step} {found}"
    training.records.events.write("state_nonfinite", step, training.update, reason=reason, names=sick[:20])
    training.records.nonfinite(step, what="state")
    raise StateFault(step, reason)


def go_back_after(training: Training, fault: StateFault) -> None:
    """The state was found non-finite: the last healthy one is replayed.

    Raises:
        Halted: the fault was found at this step before, the budget is used up, or no checkpoint is left.
    """
    assert training.guarding is not None
    ladder = training.guarding.ladder
    if ladder.climb_for_fault(fault.step, training.update) == Verdict.HALT:
        used = f"{ladder.used('rollback', training.update)} rollbacks were used"
        why = "it was found there before" if ladder.was_found_at(fault.step) else used
        raise Halted(f"{fault}; {why}, so it is no passing fault of the machine")
    before = ladder.state_dict()
    _go_back(training, {"reason": str(fault)}, latest=None)
    ladder.went_back_for_fault(before)
    _keep(training)


def go_back_for(training: Training, told: Mapping[str, Any], began_at: int) -> None:
    """A guard asked for it: go back to before the trouble began, with the learning rate that the ladder now has.

    Only checkpoints of the run's own cadence count: one that a signal left is not there in an uninterrupted run.

    Raises:
        Halted: no checkpoint is left from before the trouble.
    """
    assert training.guarding is not None
    ladder = training.guarding.ladder
    before = ladder.state_dict()
    _go_back(training, told, latest=began_at)
    ladder.load_state_dict(before)
    training.guarding.guards.restart()
    _keep(training)


def _go_back(training: Training, told: Mapping[str, Any], latest: int | None) -> None:
    assert training.guarding is not None
    at, update = training.step, training.update
    ladder = training.guarding.ladder
    numbers = {
        "number": ladder.num_rollbacks,
        "used": ladder.used("rollback", update),
        "budget": ladder.max_rollbacks,
        "lr_factor": ladder.lr_factor(update),
    }
    finish_save(training)  # where it failed an event has said so, and an older one is gone back to
    try:
        restored = newest_checkpoint(training, scheduled_until=latest)
    except CheckpointError as error:
        raise Halted(f"the training cannot go back from step {at}: {error}") from None
    if restored is None:
        raise Halted(f"the training cannot go back from step {at}: no healthy checkpoint is from before the trouble")
    put_back(training, restored, ("best", "eval", "last"))
    gate = training.runner.gate
    gate.latch.zero_()
    training.start_batches()
    for reason in restored.refused:
        training.records.events.write("checkpoint_refused", at, update, reason=reason)
    training.records.events.write("rollback", at, update, **told, to_step=training.step, **numbers)


def _keep(training: Training) -> None:
    """The budgets that were used and the line that was left must survive a kill from here on."""
    save_state(training)
    finish_save(training)
    if training.ranks.is_first:
        CheckpointStore(training.run).forget_after(training.step)
    training.ranks.of_first(None)  # no rank reads before they are gone
