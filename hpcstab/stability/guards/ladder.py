"""The ladder: what a verdict costs, rung by rung, until the budgets are used up.

leave batches out -> back off the learning rate -> go back to a healthy checkpoint -> halt. An exhausted rung gives way
to the next; none is silent, since whoever climbs writes the event.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcstab.stability.guards.guards import Verdict


class Ladder:
    """Budgets of a whole run, resumes included.

    Args:
        lr_factor: the learning rate is multiplied by it at each back-off, and at each rollback that a guard asked for
            (the same steps with the same learning rate would come to the same end).
        max_backoffs, max_rollbacks: so often in all.

    Attributes:
        lr_factor: on the learning rate as it now is.
    """

    def __init__(self, lr_factor: float, max_backoffs: int, max_rollbacks: int) -> None:
        self._factor = lr_factor
        self.max_backoffs = max_backoffs
        self.max_rollbacks = max_rollbacks
        self.lr_factor = 1.0
        self.num_backoffs = 0
        self.num_rollbacks = 0
        self.fault_steps: list[int] = []

    def climb(self, verdict: Verdict) -> Verdict:
        """The rung that answers a verdict, charged to its budget."""
        if verdict == Verdict.BACKOFF:
            if self.num_backoffs < self.max_backoffs:
                self.num_backoffs += 1
                self.lr_factor *= self._factor
                return Verdict.BACKOFF
            verdict = Verdict.ROLLBACK
        if verdict == Verdict.ROLLBACK and self.num_rollbacks < self.max_rollbacks:
            self.num_rollbacks += 1
            self.lr_factor *= self._factor
            return Verdict.ROLLBACK
        return Verdict.HALT if verdict else Verdict.CONTINUE

    def climb_for_fault(self, step: int) -> Verdict:
        """The rung that answers a non-finite state before ``step``: going back, unless it was found there before.

        The learning rate stays: a fault that does not return leaves the run as if it had never been.
        """
        if step in self.fault_steps or self.num_rollbacks >= self.max_rollbacks:
            return Verdict.HALT
        self.fault_steps.append(step)
        self.num_rollbacks += 1
        return Verdict.ROLLBACK

    def state_dict(self) -> dict[str, Any]:
        return {
            "lr_factor": self.lr_factor,
            "num_backoffs": self.num_backoffs,
            "num_rollbacks": self.num_rollbacks,
            "fault_steps": list(self.fault_steps),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.lr_factor = state["lr_factor"]
        self.num_backoffs, self.num_rollbacks = state["num_backoffs"], state["num_rollbacks"]
        self.fault_steps = list(state["fault_steps"])
