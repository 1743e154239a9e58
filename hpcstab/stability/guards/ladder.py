"""The ladder: what a verdict costs, rung by rung, until the budgets are used up; long health gives rungs back.

leave batches out -> back off the learning rate -> go back to a healthy checkpoint -> halt. An exhausted rung gives way
to the next; none is silent, since whoever climbs writes the event. All is a function of the index of an update, which
is known before the step is given to the device, however late the host reads.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any, Literal

from hpcstab.stability.guards.guards import Verdict

Rung = Literal["backoff", "rollback"]


class Ladder:
    """Rungs that a run is on, resumes included.

    Args:
        lr_factor: the learning rate is multiplied by it at each back-off, and at each rollback that a guard asked for
            (the same steps with the same learning rate would come to the same end).
        max_backoffs, max_rollbacks: so often at a time.
        recover_after: so many applied updates beyond the last verdict, and the last rung is given back over as many
            more: the logarithm of the learning rate rises evenly, and at the end of it the budget is there again; then
            the rung before it. What is trained again after a rollback is no ground gained: a rung that it gave back
            would be used at the same place again, for ever. 0 gives none back.

    Attributes:
        num_backoffs, num_rollbacks: so often since the run began.
    """

    def __init__(self, lr_factor: float, max_backoffs: int, max_rollbacks: int, recover_after: int) -> None:
        self._factor = lr_factor
        self._recover_after = recover_after
        self._rungs: list[Rung] = []
        self._since = 0  # the update of the last verdict
        self._faults: list[tuple[int, int]] = []  # (step, update) of faults of the state
        self.max_backoffs = max_backoffs
        self.max_rollbacks = max_rollbacks
        self.num_backoffs = 0
        self.num_rollbacks = 0

    def lr_factor(self, update: int) -> float:
        """On the learning rate of the update with this index."""
        return float(self._factor ** (len(self._rungs) - self._num_recovered(update)))

    def used(self, rung: Rung, update: int) -> int:
        """How much of a budget is used before the update with this index."""
        faults = [at for _, at in self._faults if not self._recover_after or update - at < self._recover_after]
        return self._held(update).count(rung) + (len(faults) if rung == "rollback" else 0)

    def recovers_at(self, update: int) -> bool:
        """Whether the update with this index is the first one after a rung was given back as a whole."""
        return len(self._held(update)) < len(self._held(update - 1))

    def climb(self, verdict: Verdict, update: int) -> Verdict:
        """The rung that answers a verdict before the update with this index, charged to its budget."""
        if verdict == Verdict.CONTINUE:
            return verdict
        self._rungs = self._held(update)
        self._since = update
        if verdict == Verdict.BACKOFF:
            if self.used("backoff", update) < self.max_backoffs:
                self.num_backoffs += 1
                self._rungs.append("backoff")
                return Verdict.BACKOFF
            verdict = Verdict.ROLLBACK
        if verdict == Verdict.ROLLBACK and self.used("rollback", update) < self.max_rollbacks:
            self.num_rollbacks += 1
            self._rungs.append("rollback")
            return Verdict.ROLLBACK
        return Verdict.HALT

    def climb_for_fault(self, step: int, update: int) -> Verdict:
        """The rung that answers a non-finite state before ``step``: going back, unless it was found there before.

        The learning rate stays: a fault that does not return leaves the run as if it had never been.
        """
        if self.was_found_at(step) or self.used("rollback", update) >= self.max_rollbacks:
            return Verdict.HALT
        self._faults.append((step, update))
        self.num_rollbacks += 1
        return Verdict.ROLLBACK

    def was_found_at(self, step: int) -> bool:
        """Whether a fault of the state was found before ``step`` already."""
        return any(known == step for known, _ in self._faults)

    def went_back_for_fault(self, before: Mapping[str, Any]) -> None:
        """A checkpoint was loaded after a fault; of the state ``before`` stays what faults have used."""
        self._faults = [(step, at) for step, at in before["faults"]]
        self.num_rollbacks = before["num_rollbacks"]

    def _num_recovered(self, update: int) -> float:
        """How many rungs are given back before the update with this index; parts of one, too."""
        if not self._recover_after:
            return 0.0
        health = update - self._since - self._recover_after
        return min(max(0.0, health / self._recover_after), float(len(self._rungs)))

    def _held(self, update: int) -> list[Rung]:
        """A rung that is given back in part is still held."""
        return self._rungs[: len(self._rungs) - int(self._num_recovered(update))]

    def state_dict(self) -> dict[str, Any]:
        return {
            "rungs": list(self._rungs),
            "since": self._since,
            "faults": [list(fault) for fault in self._faults],
            "num_backoffs": self.num_backoffs,
            "num_rollbacks": self.num_rollbacks,
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """A state of this version, or of those before, which gave no rung back."""
        if "rungs" not in state:
            state = self._of_before(state)
        self._rungs, self._since = list(state["rungs"]), state["since"]
        self._faults = [(step, at) for step, at in state["faults"]]
        self.num_backoffs, self.num_rollbacks = state["num_backoffs"], state["num_rollbacks"]

    def _of_before(self, state: Mapping[str, Any]) -> dict[str, Any]:
        num_rungs = round(math.log(state["lr_factor"]) / math.log(self._factor))
        num_backoffs = state["num_backoffs"]
        return {
            "rungs": ["backoff"] * num_backoffs + ["rollback"] * (num_rungs - num_backoffs),
            "since": 0,
            "faults": [[step, 0] for step in state["fault_steps"]],
            "num_backoffs": num_backoffs,
            "num_rollbacks": state["num_rollbacks"],
        }
