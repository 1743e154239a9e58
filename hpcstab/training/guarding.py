"""The guards inside a training: what they are shown, where their thresholds stand, what their verdicts do."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch

from hpcstab.config.guards import GuardsConfig
from hpcstab.stability.gate.gate import LAG, Gate
from hpcstab.stability.guards.drift import DriftGuard
from hpcstab.stability.guards.guards import DELAY, Finding, Guard, Guards, StreakGuard, Update, Verdict
from hpcstab.stability.guards.headroom import HeadroomGuard
from hpcstab.stability.guards.ladder import Ladder
from hpcstab.stability.guards.spikes import SpikeGuard
from hpcstab.stability.guards.stalled import StalledGuard
from hpcstab.training.ends import Halted, NothingValid
from hpcstab.training.rollback import go_back_for

if TYPE_CHECKING:
    from hpcstab.training.step import Pending, Signals
    from hpcstab.training.trainer import Trainer

_LARGEST = torch.finfo(torch.float32).max


@dataclass
class Guarding:
    """Guards and ladder of one run."""

    guards: Guards
    ladder: Ladder
    stalled: StalledGuard | None
    _set: tuple[float, float] = field(default=(_LARGEST, _LARGEST))

    def set_thresholds(self, gate: Gate, index: int, since: int) -> None:
        """Bring the thresholds of the update ``index`` to the device, where they differ from those there.

        ``since``: the step from which on the weights of the loss terms are those of this update.
        """
        loss, norm = (min(value, _LARGEST) for value in self.guards.thresholds(index, since))
        if (loss, norm) != self._set:
            gate.max_loss.fill_(loss)
            gate.max_norm.fill_(norm)
            self._set = (loss, norm)

    def state_dict(self) -> dict[str, Any]:
        return {"guards": self.guards.state_dict(), "ladder": self.ladder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guards.load_state_dict(state["guards"])
        self.ladder.load_state_dict(state["ladder"])


def build_guarding(config: GuardsConfig | None) -> Guarding | None:
    """Guards and ladder of a config; None for none."""
    if config is None:
        return None
    assert DELAY >= LAG, "a verdict must not depend on how late the host reads"
    stalled = StalledGuard(**_numbers(config.stalled)) if config.stalled else None
    candidates: dict[str, Guard | None] = {
        "stalled": stalled,
        "batchnorm": DriftGuard(**_numbers(config.batchnorm)) if config.batchnorm else None,
        "headroom": HeadroomGuard(**_numbers(config.headroom)) if config.headroom else None,
    }
    guards = Guards(
        StreakGuard(config.streak.max_skips),
        SpikeGuard(**config.loss_spike.model_dump()) if config.loss_spike else None,
        SpikeGuard(**config.norm_spike.model_dump()) if config.norm_spike else None,
        {name: guard for name, guard in candidates.items() if guard is not None},
    )
    return Guarding(guards, Ladder(**config.ladder.model_dump()), stalled)


def show_to_guards(trainer: Trainer, pending: Pending, signals: Signals, outcome: str) -> None:
    """A step was recorded as ``outcome``, before the count of updates moves on."""
    if trainer.guarding is None:
        return
    guards, found = trainer.guarding.guards, []
    since = trainer.runner.objective.unchanged_since(pending.step)
    seen = Update(trainer.update, pending.step, since, signals.figures["loss"], signals.figures["grad_norm"])
    if outcome == "applied":
        readings = trainer.ranks.of_first(pending.readings.read()) if pending.readings is not None else {}
        found = guards.applied(replace(seen, readings=readings))
        _tell_recovery(trainer, pending.step)
        stalled = trainer.guarding.stalled
        if stalled is not None and pending.norms is not None:
            still = stalled.probed(pending.norms.read())
            found += [still] if still else []
    elif outcome == "skipped":
        found = guards.skipped(seen)
    for finding in found:
        trainer.records.events.write(
            "guard_warning", pending.step, trainer.update, **_told(finding), verdict=finding.verdict.name.lower()
        )


def verdict_is_due(trainer: Trainer) -> bool:
    """Whether a verdict counts before the next step."""
    if trainer.guarding is None:
        return False
    return trainer.guarding.guards.due(trainer.update + len(trainer.in_flight)) is not None


def answer_verdict(trainer: Trainer) -> None:
    """Climb the ladder for the verdict that is due; nothing is in flight.

    Raises:
        Halted: no rung is left.
    """
    assert trainer.guarding is not None
    guards, ladder = trainer.guarding.guards, trainer.guarding.ladder
    finding = guards.due(trainer.update)
    assert finding is not None
    rung = ladder.climb(finding.verdict, trainer.update)
    told = _told(finding) | {"asked": finding.verdict.name.lower()}
    if rung == Verdict.BACKOFF:
        guards.restart()
        trainer.records.events.write(
            "backoff",
            trainer.step,
            trainer.update,
            **told,
            number=ladder.num_backoffs,
            used=ladder.used("backoff", trainer.update),
            budget=ladder.max_backoffs,
            lr_factor=ladder.lr_factor(trainer.update),
        )
    elif rung == Verdict.ROLLBACK:
        began_at = guards.streak.began_at
        go_back_for(trainer, told, trainer.step if began_at is None else began_at)
    else:
        raise Halted(
            f"guard {finding.guard} asked for {told['asked']} at step {trainer.step}, and no rung is left: "
            f"{ladder.used('backoff', trainer.update)} back-offs and "
            f"{ladder.used('rollback', trainer.update)} rollbacks were used"
        )


def answer_empty_evaluation(trainer: Trainer, empty: NothingValid) -> None:
    """The weights are finite and nothing comes out of them: go back to before, with a lower learning rate.

    Raises:
        Halted: no rung is left.
    """
    assert trainer.guarding is not None
    ladder = trainer.guarding.ladder
    if ladder.climb(Verdict.ROLLBACK, trainer.update) != Verdict.ROLLBACK:
        raise Halted(f"{empty}, and no rung is left: {ladder.used('rollback', trainer.update)} rollbacks were used")
    told = {"guard": "evaluation", "reason": str(empty), "asked": "rollback"}
    go_back_for(trainer, told, began_at=trainer.step - 1)


def _tell_recovery(trainer: Trainer, step: int) -> None:
    """Write it down where the update after this one has a rung less."""
    assert trainer.guarding is not None
    ladder, following = trainer.guarding.ladder, trainer.update + 1
    if ladder.recovers_at(following):
        used = {f"used_{rung}s": ladder.used(rung, following) for rung in ("backoff", "rollback")}
        trainer.records.events.write("recovery", step, trainer.update, **used, lr_factor=ladder.lr_factor(following))


def _told(finding: Finding) -> dict[str, Any]:
    return {"guard": finding.guard, **finding.data}


def _numbers(section: Any) -> dict[str, Any]:
    """The arguments of a guard from its section of the config."""
    values: dict[str, Any] = section.model_dump()
    return values | {"verdict": Verdict[section.verdict.upper()]}
