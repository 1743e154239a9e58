"""Phases of loss terms: a term may be off, ramp up, or be on, by step."""

from __future__ import annotations

from collections.abc import Iterable


def phase_factor(step: int, start: int, ramp: int) -> float:
    """Factor on a term's weight at ``step``: 0 before ``start``, then linear over ``ramp`` steps to 1.

    The first step of a ramp is above 0, its last is 1, so that a ramp of 1 step switches the term on.
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / ramp) if ramp > 0 else 1.0


def phases_factor(step: int, phases: Iterable[tuple[int, int, float]]) -> float:
    """Factor on a term's weight at ``step`` after several phases: (start, ramp, factor at its end), in order.

    Each goes from the factor of the one before, the first from 0.
    """
    factor = reached = 0.0
    for start, ramp, to in phases:
        factor += (to - reached) * phase_factor(step, start, ramp)
        reached = to
    return factor
