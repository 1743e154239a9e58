"""What is done about a loss term that went bad: an event, and where others did not, a ramp."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

from hpcstab.training.step import Pending
from hpcstab.training.training import Training


def note_nonfinite_terms(training: Training, row: Mapping[str, Any]) -> None:
    """An event for each term that is not finite for the first time; its value came with the other signals."""
    objective = training.runner.objective
    for term, weight in objective.weights(row["step"]).items():
        value = row[f"loss_{term}"]
        if not math.isfinite(value) and term not in objective.nonfinite:
            objective.nonfinite.add(term)
            training.records.events.write(
                "term_nonfinite", row["step"], training.update, term=term, value=value, weight=weight
            )


def ramp_bad_terms_again(training: Training, pending: Pending) -> None:
    """A step is left out: where some of its terms went bad and others did not, those come back slowly.

    Where all went bad, the batch or the network did, and no weight is to blame. It takes effect from the next step.
    """
    objective, step = training.runner.objective, pending.step
    if not objective.ramps_again:
        return
    weights = objective.weights(step)
    found = training.runner.bad_terms(pending.item)
    bad = {term: what for each in reversed(training.ranks.of_all(found)) for term, what in each.items()}
    if len(bad) == sum(weight != 0.0 for weight in weights.values()):
        return
    objective.ramp_again(bad, step + 1)
    for term, what in bad.items():
        training.records.events.write(
            "term_ramped_again",
            step,
            training.update,
            term=term,
            nonfinite=what,
            weight_before=weights[term],
            weight_next=objective.weight(term, step + 1),
            ramp_steps=objective.ramp_steps,
        )
