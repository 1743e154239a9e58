"""What happened in a loop that is not ours: a list for programs, a logger for people."""

from __future__ import annotations

import logging
from typing import Any

from hpcstab.metrics import EventKind
from hpcstab.stability.loop.turns import Figures

_LOG = logging.getLogger("hpcstab")
_WORDS: dict[EventKind, str] = {
    "not_reproduced": "failed once and not again",
    "rescaled": "times another loss scale",
    "loop_left": "times the loop was left with batches held",
    "capsule_saved": "capsules written",
    "capsule_left_out": "capsules not written",
}


class Journal:
    """Events of a loop: kind, step, update, and what else was known."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []

    def tell(self, kind: EventKind, step: int, update: int, **data: Any) -> None:
        """Note an event, and warn of it: there is no silent refusal."""
        self.events.append({"kind": kind, "step": step, "update": update, **data})
        told = ", ".join(f"{name} {_short(value)}" for name, value in data.items())
        _LOG.warning("step %d: %s%s", step, kind, f" ({told})" if told else "")

    def summary(self, updates: int, num_refused: int) -> str:
        """One line: steps, updates, refusals and why, and what else happened."""
        reasons = [event["reason"] for event in self.events if event["kind"] == "step_refused"]
        counts = ", ".join(f"{reasons.count(reason)} {reason}" for reason in dict.fromkeys(reasons))
        refused = f"{num_refused} refused" + (f" ({counts})" if counts else "")
        numbers = {kind: sum(event["kind"] == kind for event in self.events) for kind in _WORDS}
        others = [f"{number} {_WORDS[kind]}" for kind, number in numbers.items() if number]
        return "; ".join([f"{updates + num_refused} steps: {updates} applied, {refused}", *others])


def figures_of(figures: Figures) -> dict[str, float]:
    """Those of a refused step that tell why."""
    return {"loss": figures.loss, "grad_norm": figures.grad_norm}


def _short(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
