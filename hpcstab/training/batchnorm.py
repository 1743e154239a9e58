"""What the host does about sick running statistics: it writes them down, estimates them anew, ends the run.

The device has repaired them already, in the step that was looked at. What takes the host's hands happens before a
step that does not depend on when it read: ``LAG`` steps later, so that a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any, Literal

import torch

from hpcstab.stability.batchnorm.reestimate import reestimate
from hpcstab.stability.batchnorm.running_statistics import SickLayer
from hpcstab.stability.gate.gate import LAG
from hpcstab.stability.random_state import random_state_kept
from hpcstab.training.ends import Halted
from hpcstab.training.step import Pending
from hpcstab.training.training import Training

When = Literal["step", "load", "evaluation", "refusal"]
MAX_NAMED = 20
"""One event a layer, for so many layers of a check; each says how many there were."""


def read_statistics(training: Training, pending: Pending) -> None:
    """Write down what the check of a step found; layers to be estimated anew, and a run to be ended, wait."""
    sick = training.ranks.of_first(pending.statistics.read()) if pending.statistics is not None else []
    if sick:
        _write_down(training, sick, "step", pending.step)
        if training.batchnorm.statistics.repair != "none":
            training.batchnorm.waiting[pending.step + 1 + LAG] = [layer.name for layer in sick]


def check_statistics_now(training: Training, when: When) -> None:
    """Look, repair and wait for the answer, where no step is in flight.

    Raises:
        Halted: more checks than ``max_repairs`` had to repair.
    """
    care = training.batchnorm
    # a state that a step was refused in is no check of its own: without the step there would have been none
    findings = care.statistics.check(torch.ones((), device=training.device) if when == "refusal" else None)
    sick = training.ranks.of_first(findings.read() if findings is not None else [])
    if not sick:
        return
    _write_down(training, sick, when, training.step)
    if care.statistics.repair != "none":
        _finish(training, [[layer.name for layer in sick]])


def finish_repairs(training: Training, *, ends: bool) -> None:
    """Estimate anew what waits for this step, at the end of the training all that waits.

    Raises:
        Halted: more checks than ``max_repairs`` had to repair.
    """
    waiting = training.batchnorm.waiting
    due = [step for step in sorted(waiting) if ends or step <= training.step]
    if due:
        _finish(training, [waiting.pop(step) for step in due])


def _finish(training: Training, checks: Sequence[Sequence[str]]) -> None:
    """Count the checks that had to repair, and estimate their layers anew."""
    care, max_repairs = training.batchnorm, training.config.stability.batchnorm.max_repairs
    care.num_repairs += len(checks)
    layers = list(dict.fromkeys(itertools.chain.from_iterable(checks)))
    if care.statistics.repair == "reestimate":
        _reestimate(training, layers)
    if max_repairs is not None and care.num_repairs > max_repairs:
        raise Halted(
            f"running statistics had to be repaired at {care.num_repairs} checks, more than"
            f" stability.batchnorm.max_repairs {max_repairs}; last {layers[0]}"
        )


def _reestimate(training: Training, names: Sequence[str]) -> None:
    """From the batches that come next, so that it depends on nothing but the step and the network."""
    statistics, runner = training.batchnorm.statistics, training.runner
    num_batches = training.config.stability.batchnorm.reestimate_batches
    with random_state_kept():
        batches = itertools.islice(training.batches.from_step(training.step), num_batches)
        layers = {name: statistics.layers[name] for name in names}
        clean = reestimate(runner.network, layers, batches, runner.look_at)
    statistics.check()  # which keeps what is sound now
    for name, count in clean.items():
        training.records.events.write(
            "batchnorm_reestimated" if count else "batchnorm_not_reestimated",
            training.step,
            training.update,
            layer=name,
            num_clean_passes=count,
            num_batches=num_batches,
        )


def _write_down(training: Training, sick: Sequence[SickLayer], when: When, step: int) -> None:
    repair = training.batchnorm.statistics.repair
    if any(layer.num_nan or layer.num_inf for layer in sick):
        training.records.nonfinite(step, what="running statistics")
    for layer in sick[:MAX_NAMED]:
        found: dict[str, Any] = {
            "layer": layer.name,
            "num_nan": layer.num_nan,
            "num_inf": layer.num_inf,
            "num_negative": layer.num_negative,
            "when": when,
            "num_sick_layers": len(sick),
        }
        if repair == "none":
            training.records.events.write("batchnorm_sick", step, training.update, **found)
            continue
        training.records.events.write(
            "batchnorm_repaired",
            step,
            training.update,
            **found,
            repair="restore" if repair == "reestimate" else repair,  # at once; the estimate follows
            num_masked=int(repair == "reset"),
        )
