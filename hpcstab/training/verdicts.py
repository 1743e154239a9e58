"""The guards at work: what they are shown, and what their verdicts do."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from hpcstab.stability.guards.guards import Finding, Update, Verdict
from hpcstab.training.ends import Halted, NothingValid
from hpcstab.training.rollback import go_back_for
from hpcstab.training.step import Pending, Signals
from hpcstab.training.training import Training


def show_to_guards(training: Training, pending: Pending, signals: Signals, outcome: str) -> None:
    """A step was recorded as ``outcome``, before the count of updates moves on."""
    if training.guarding is None:
        return
    guards, found = training.guarding.guards, []
    since = training.runner.objective.unchanged_since(pending.step)
    seen = Update(training.update, pending.step, since, signals.figures["loss"], signals.figures["grad_norm"])
    if outcome == "applied":
        readings = training.ranks.of_first(pending.readings.read()) if pending.readings is not None else {}
        found = guards.applied(replace(seen, readings=readings))
        _tell_recovery(training, pending.step)
        stalled = training.guarding.stalled
        if stalled is not None and pending.norms is not None:
            still = stalled.probed(pending.norms.read())
            found += [still] if still else []
    elif outcome == "skipped":
        found = guards.skipped(seen)
    for finding in found:
        training.records.events.write(
            "guard_warning", pending.step, training.update, **_told(finding), verdict=finding.verdict.name.lower()
        )


def verdict_is_due(training: Training) -> bool:
    """Whether a verdict counts before the next step."""
    if training.guarding is None:
        return False
    return training.guarding.guards.due(training.update + len(training.in_flight)) is not None


def answer_verdict(training: Training) -> None:
    """Climb the ladder for the verdict that is due; nothing is in flight.

    Raises:
        Halted: no rung is left.
    """
    assert training.guarding is not None
    guards, ladder = training.guarding.guards, training.guarding.ladder
    finding = guards.due(training.update)
    assert finding is not None
    rung = ladder.climb(finding.verdict, training.update)
    told = _told(finding) | {"asked": finding.verdict.name.lower()}
    if rung == Verdict.BACKOFF:
        guards.restart()
        training.records.events.write(
            "backoff",
            training.step,
            training.update,
            **told,
            number=ladder.num_backoffs,
            used=ladder.used("backoff", training.update),
            budget=ladder.max_backoffs,
            lr_factor=ladder.lr_factor(training.update),
        )
    elif rung == Verdict.ROLLBACK:
        began_at = guards.streak.began_at
        go_back_for(training, told, training.step if began_at is None else began_at)
    else:
        raise Halted(
            f"guard {finding.guard} asked for {told['asked']} at step {training.step}, and no rung is left: "
            f"{ladder.used('backoff', training.update)} back-offs and "
            f"{ladder.used('rollback', training.update)} rollbacks were used"
        )


def answer_empty_evaluation(training: Training, empty: NothingValid) -> None:
    """The weights are finite and nothing comes out of them: go back to before, with a lower learning rate.

    Raises:
        Halted: no rung is left.
    """
    assert training.guarding is not None
    ladder = training.guarding.ladder
    if ladder.climb(Verdict.ROLLBACK, training.update) != Verdict.ROLLBACK:
        raise Halted(f"{empty}, and no rung is left: {ladder.used('rollback', training.update)} rollbacks were used")
    told = {"guard": "evaluation", "reason": str(empty), "asked": "rollback"}
    go_back_for(training, told, began_at=training.step - 1)


def _tell_recovery(training: Training, step: int) -> None:
    """Write it down where the update after this one has a rung less."""
    assert training.guarding is not None
    ladder, following = training.guarding.ladder, training.update + 1
    if ladder.recovers_at(following):
        used = {f"used_{rung}s": ladder.used(rung, following) for rung in ("backoff", "rollback")}
        training.records.events.write("recovery", step, training.update, **used, lr_factor=ladder.lr_factor(following))


def _told(finding: Finding) -> dict[str, Any]:
    return {"guard": finding.guard, **finding.data}
