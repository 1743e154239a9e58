"""What stood between the numbers of a run and its state, in words and counted over its runs."""

from __future__ import annotations

from collections.abc import Sequence

from hpcstab.report.record import LoadedRun

_WORDS = {
    "masked": ("mask firing", "mask firings"),
    "refused_nonfinite": ("step refused for a non-finite value", "steps refused for a non-finite value"),
    "refused_declared": ("step refused on a declared fault", "steps refused on a declared fault"),
    "not_reproduced": ("refused step that was fine again", "refused steps that were fine again"),
    "spikes": ("spike refused", "spikes refused"),
    "rescaled": ("loss-scale back-off", "loss-scale back-offs"),
    "backoffs": ("learning-rate back-off", "learning-rate back-offs"),
    "rollbacks": ("rollback", "rollbacks"),
    "limited": ("limit firing", "limit firings"),
    "clipped": ("step clipped", "steps clipped"),
    "repaired": ("repair of running statistics", "repairs of running statistics"),
    "failed_eval_batches": ("failed evaluation batch", "failed evaluation batches"),
    "empty_evals": ("evaluation without a valid batch", "evaluations without a valid batch"),
    "nonfinite_terms": ("non-finite loss term", "non-finite loss terms"),
    "ramped_again": ("loss term ramped again", "loss terms ramped again"),
}


def interventions_text(runs: Sequence[LoadedRun]) -> str:
    """``37 steps refused for a non-finite value, 1 rollback``; empty where nothing acted."""
    counts = {what: sum(run.count(what) for run in runs) for what in _WORDS}
    return ", ".join(f"{count:,} {_WORDS[what][count > 1]}" for what, count in counts.items() if count)


def refusals_text(runs: Sequence[LoadedRun]) -> str:
    """What the gate had to refuse, and whether that kept the state finite; empty where it refused nothing."""
    refused = sum(run.count("refused_nonfinite") + run.count("not_reproduced") for run in runs)
    if not refused:
        return ""
    finite = sum(run.answer("finite") == "yes" for run in runs)
    steps = f"{refused:,} step{'s' * (refused > 1)}"
    halted = sum(run.state == "halted" for run in runs)
    text = f"the gate refused {steps} for a non-finite value, the state stayed finite in {finite} of {len(runs)}"
    return text + (f", the guards halted {halted} of {len(runs)}" if halted else "")
