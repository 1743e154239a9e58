"""Guards: on the host, some steps later, they read what a step said and give a verdict.

Only applied updates enter their statistics, and nothing depends on when the host happens to read. A threshold for
the update with index u rests on updates up to u - 1 - DELAY, and a verdict on update r counts from update
r + 1 + DELAY on: both are known by then however late the host is. So a resumed run equals an uninterrupted one, and
a run that left a batch out equals one that never saw it.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import IntEnum
from typing import Any, Protocol

from hpcstab.stability.guards.spikes import NEVER, SpikeGuard

DELAY = 2
"""In applied updates; at least the lag of the host (:data:`hpcstab.stability.gate.gate.LAG`)."""


class Verdict(IntEnum):
    """What a guard asks for; the trainer takes the largest."""

    CONTINUE = 0
    BACKOFF = 1
    ROLLBACK = 2
    HALT = 3


@dataclass(frozen=True)
class Update:
    """An update as the guards see it, applied or refused.

    ``since``: the step from which on the objective is that of ``step``; figures from before it are of another one.
    ``readings`` are those of a health check (see :mod:`hpcstab.stability.guards.health`), empty in all other steps.
    """

    index: int
    step: int
    since: int
    loss: float
    grad_norm: float
    readings: Mapping[str, float] = field(default_factory=dict)


@dataclass(frozen=True)
class Finding:
    """What a guard has to say; ``data`` are its figures, for the event."""

    guard: str
    verdict: Verdict
    data: Mapping[str, Any]


class Guard(Protocol):
    """A guard that reads applied updates."""

    def see(self, update: Update) -> Finding | None: ...

    def restart(self) -> None:
        """Forget what belongs to another learning rate."""

    def state_dict(self) -> dict[str, Any]: ...

    def load_state_dict(self, state: Mapping[str, Any]) -> None: ...


class StreakGuard:
    """Refused steps in a row: one bad batch is left out and forgotten, many are not the batches' fault.

    Where all of them were refused for their gradient norm alone, with a loss like those before, the weights stand where
    gradients are large and the batches are sound: refusing more would hold the training there, and a lower learning
    rate has nothing to cure. Then norms are judged anew.
    """

    name = "streak"

    def __init__(self, max_skips: int) -> None:
        self._max_skips = max_skips
        self.num_skips = 0
        self.began_at: int | None = None
        self._all_for_norm = True

    def skipped(self, step: int, *, for_norm: bool = False) -> Finding | None:
        """A step was left out; every ``max_skips`` in a row are a finding. ``began_at`` is the first of them all."""
        self.num_skips += 1
        self.began_at = step if self.began_at is None else self.began_at
        self._all_for_norm &= for_norm
        if self.num_skips < self._max_skips:
            return None
        data = {"num_skips": self.num_skips, "began_at": self.began_at}
        if not self._all_for_norm:
            return Finding(self.name, Verdict.BACKOFF, data)
        self._forget()
        return Finding(self.name, Verdict.CONTINUE, data | {"accepted": "grad_norm"})

    def see(self, update: Update) -> Finding | None:
        self._forget()
        return None

    def _forget(self) -> None:
        self.num_skips, self.began_at, self._all_for_norm = 0, None, True

    def restart(self) -> None:
        """The count begins anew; where the trouble began is remembered until an update is applied."""
        self.num_skips = 0

    def state_dict(self) -> dict[str, Any]:
        return {"num_skips": self.num_skips, "began_at": self.began_at, "all_for_norm": self._all_for_norm}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.num_skips, self.began_at = state["num_skips"], state["began_at"]
        self._all_for_norm = state.get("all_for_norm", not state["num_skips"])  # versions before did not ask


class Guards:
    """All guards of a training, and the verdicts that wait for their update.

    Args:
        streak: counts refused steps.
        loss, norm: thresholds on the loss and on the gradient norm; None has none.
        others: by name.
    """

    def __init__(
        self, streak: StreakGuard, loss: SpikeGuard | None, norm: SpikeGuard | None, others: Mapping[str, Guard]
    ) -> None:
        self.streak = streak
        self._loss = loss
        self._norm = norm
        self._others = dict(others)
        self._due: list[tuple[int, Finding]] = []

    def thresholds(self, index: int, since: int = 0) -> tuple[float, float]:
        """(largest loss, largest gradient norm) that the update ``index`` may have; inf while too little is known.

        Args:
            since: the step from which on the objective is that of the update.
        """
        known = index - DELAY
        return (
            self._loss.threshold(known, since) if self._loss else NEVER,
            self._norm.threshold(known, since) if self._norm else NEVER,
        )

    def applied(self, update: Update) -> list[Finding]:
        """An update was applied; what the guards say about it at once, as a warning."""
        if self._loss:
            self._loss.add(update.loss, update.step)
        if self._norm:
            self._norm.add(update.grad_norm, update.step)
        found = [finding for guard in (self.streak, *self._others.values()) if (finding := guard.see(update))]
        self._wait(found, update.index + 1 + DELAY)
        return found

    def skipped(self, step: Update) -> list[Finding]:
        """A step was left out, before the update ``step.index``: nothing is in flight, so its verdict counts now."""
        largest_loss, largest_norm = self.thresholds(step.index, step.since)
        for_norm = step.loss <= largest_loss and largest_norm < step.grad_norm < math.inf
        finding = self.streak.skipped(step.step, for_norm=for_norm)
        if finding and finding.verdict == Verdict.CONTINUE and self._norm:
            self._norm.restart()
        found = [finding] if finding else []
        self._wait(found, step.index)
        return found

    def due(self, index: int) -> Finding | None:
        """The finding with the largest verdict that counts before the update ``index``; None for none."""
        findings = [finding for at, finding in self._due if at <= index]
        return max(findings, key=lambda finding: finding.verdict, default=None)

    def restart(self) -> None:
        """After a back-off: another learning rate has other statistics, and earlier verdicts are answered."""
        self._due.clear()
        for guard in self._all().values():
            guard.restart()

    def state_dict(self) -> dict[str, Any]:
        """Statistics and waiting verdicts, as plain values."""
        due = [[at, finding.guard, int(finding.verdict), dict(finding.data)] for at, finding in self._due]
        return {"due": due} | {name: guard.state_dict() for name, guard in self._all().items()}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._due = [(at, Finding(guard, Verdict(verdict), data)) for at, guard, verdict, data in state["due"]]
        for name, guard in self._all().items():
            guard.load_state_dict(state[name])

    def _wait(self, found: list[Finding], index: int) -> None:
        self._due += [(index, finding) for finding in found if finding.verdict > Verdict.CONTINUE]

    def _all(self) -> dict[str, Any]:
        spikes = {"loss_spike": self._loss, "norm_spike": self._norm}
        present = {name: guard for name, guard in spikes.items() if guard is not None}
        return {"streak": self.streak, **present, **self._others}
