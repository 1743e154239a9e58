"""Phases of loss terms: a term may be off, ramp up, or be on, by step."""

from __future__ import annotations


def phase_factor(step: int, start: int, ramp: int) -> float:
    """Factor on a term's weight at ``step``: 0 before ``start``, then linear over ``ramp`` steps to 1.

    The first step of a ramp is above 0, its last is 1, so that a ramp of 1 step switches the term on.
    """
    if step < start:
        return 0.0
    return min(1.0, (step - start + 1) / ramp) if ramp > 0 else 1.0
