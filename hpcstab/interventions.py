"""How often something stood between the numbers of a run and its state, counted from its rows and events."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

BESIDE = {
    "repaired": "running statistics restored or estimated anew",
    "failed_eval_batches": "evaluation batches failed",
    "empty_evals": "evaluations without a valid batch",
    "nonfinite_terms": "loss terms were not finite at some step",
    "ramped_again": "ramps of a loss term that went bad",
}
"""Counted and shown; they hide nothing, so they void nothing."""


def count_interventions(
    history: list[dict[str, str]], events: list[dict[str, Any]], declared: frozenset[int] = frozenset()
) -> dict[str, int]:
    """How often masks, limits, gate, guards and ladder acted, and what else went wrong beside the steps.

    A step counts once, however often it came: rows that came again are not in ``history``, and attempts that were
    killed repeat their events. Refusals that were rolled back have an event alone, so they are counted from there.

    Args:
        declared: steps whose batch carries a fault on purpose; to refuse these is what was asked for.
    """

    def steps(*kinds: str) -> set[int]:
        return {int(event["step"]) for event in events if event["kind"] in kinds}

    spikes = {
        int(event["step"])
        for event in events
        if event["kind"] == "step_refused" and event["data"].get("reason") == "spike"
    }
    refused = (steps("step_refused") - spikes) | {
        int(row["step"])
        for row in history
        if row["outcome"] == "skipped" and "0" in (row["loss_finite"], row["grad_finite"])
    }
    repairs, resets = _repairs(events)
    return {
        "masked": sum(int(row["num_masked"]) for row in history) + resets,
        "refused_nonfinite": len(refused - declared),
        "refused_declared": len(refused & declared),
        "not_reproduced": len(steps("not_reproduced") - declared),
        "spikes": len(spikes),
        "rescaled": len(_distinct(events, "rescaled", "loss_scale")),
        "backoffs": len(_distinct(events, "backoff", "number")),
        "rollbacks": len(_distinct(events, "rollback", "number")),
        "limited": sum(int(row["num_limited"]) for row in history),
        "clipped": sum(row["outcome"] == "applied" and float(row["clip_scale"]) < 1.0 for row in history),
        "repaired": repairs,
        "failed_eval_batches": _failed_eval_batches(events),
        "empty_evals": len(_distinct(events, "eval_empty", "weights")),
        "nonfinite_terms": len({event["data"]["term"] for event in events if event["kind"] == "term_nonfinite"}),
        "ramped_again": len(_distinct(events, "term_ramped_again", "term")),
    }


def declared_faults(config: Mapping[str, Any]) -> list[Mapping[str, Any]]:
    """What the config puts into batches on purpose; none where the config of a strange run has no such list."""
    data = config.get("data")
    faults = data.get("faults") if isinstance(data, Mapping) else None
    return [fault for fault in faults if isinstance(fault, Mapping)] if isinstance(faults, (list, tuple)) else []


def declared_fault_steps(config: Mapping[str, Any]) -> frozenset[int]:
    """Steps whose batch carries a fault on purpose."""
    return frozenset(int(fault["step"]) for fault in declared_faults(config))


def _distinct(events: list[dict[str, Any]], kind: str, key: str) -> set[tuple[int, Any]]:
    return {(int(event["step"]), event["data"].get(key)) for event in events if event["kind"] == kind}


def _repairs(events: list[dict[str, Any]]) -> tuple[int, int]:
    """(restored, reset) running statistics, a layer and check each: a reset hides what was wrong."""
    found = {
        (int(event["step"]), event["data"]["layer"], event["data"]["when"]): bool(event["data"]["num_masked"])
        for event in events
        if event["kind"] == "batchnorm_repaired"
    }
    resets = sum(found.values())
    return len(found) - resets, resets


def _failed_eval_batches(events: list[dict[str, Any]]) -> int:
    """Not every failed batch has an event, but each event says how many its evaluation had."""
    failed = {
        (int(event["step"]), event["data"]["weights"]): int(event["data"]["num_failed"])
        for event in events
        if event["kind"] == "eval_batch_failed"
    }
    return sum(failed.values())
