"""Stalled learning: a training that is finite and goes nowhere."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from statistics import median
from typing import Any

from hpcstab.stability.guards.guards import Finding, Update, Verdict


class StalledGuard:
    """The median loss of ``window`` updates must lie below that of the ``window`` before it, of one objective.

    Args:
        window: in applied updates.
        min_fall: the smallest fall, as a share of the earlier median.
        verdict: what it asks for; a plateau is often no more than the end of learning.
    """

    name = "stalled"

    def __init__(self, window: int, min_fall: float, verdict: Verdict) -> None:
        self._window = window
        self._min_fall = min_fall
        self._verdict = verdict
        self._losses: list[float] = []
        self._before: float | None = None
        self._still: list[str] = []
        self._since = 0

    def see(self, update: Update) -> Finding | None:
        if update.since != self._since:
            self.restart()
            self._since = update.since
        if math.isfinite(update.loss):
            self._losses.append(update.loss)
        if len(self._losses) < self._window:
            return None
        before, now = self._before, median(self._losses)
        self._before, self._losses = now, []
        if before is None or before - now > self._min_fall * abs(before):
            return None
        return Finding(self.name, self._verdict, {"loss": now, "loss_before": before, "num_updates": self._window})

    def probed(self, norms: Sequence[tuple[str, float, float]]) -> Finding | None:
        """(module, gradient norm, update norm) of a probe: modules that do not move, where they are others than before.

        It never asks for more than a look: the cadence of probes must not change the numbers of a training.
        """
        still = [module for module, _, update_norm in norms if update_norm == 0.0]
        is_news = still != self._still
        self._still = still
        if not (still and is_news):
            return None
        return Finding(self.name, Verdict.CONTINUE, {"num_still": len(still), "of": len(norms), "modules": still[:20]})

    def restart(self) -> None:
        self._losses, self._before = [], None

    def state_dict(self) -> dict[str, Any]:
        return {"losses": list(self._losses), "before": self._before, "still": list(self._still), "since": self._since}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._losses, self._before = list(state["losses"]), state["before"]
        self._still, self._since = list(state["still"]), state["since"]
