"""What the host does about sick running statistics: it writes them down, estimates them anew, ends the run.

The device has repaired them already, in the step that was looked at. What takes the host's hands happens before a
step that does not depend on when it read: ``LAG`` steps later, so that a resumed run is the uninterrupted one.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Literal

import torch

from hpcstab.stability.batchnorm.reestimate import reestimate
from hpcstab.stability.batchnorm.running_statistics import RunningStatistics, SickLayer
from hpcstab.stability.gate.gate import LAG
from hpcstab.stability.random_state import random_state_kept
from hpcstab.training.ends import Halted

if TYPE_CHECKING:
    from hpcstab.training.step import Pending
    from hpcstab.training.trainer import Trainer

When = Literal["step", "load", "evaluation", "refusal"]
MAX_NAMED = 20
"""One event a layer, for so many layers of a check; each says how many there were."""


@dataclass
class BatchNormCare:
    """How many checks had to repair, and the layers of those that wait for their step (``waiting``: step -> layers)."""

    statistics: RunningStatistics
    num_repairs: int = 0
    waiting: dict[int, list[str]] = field(default_factory=dict)

    def is_due(self, step: int) -> bool:
        return any(due <= step for due in self.waiting)

    def state_dict(self) -> dict[str, Any]:
        return {
            "kept": self.statistics.state_dict(),
            "num_repairs": self.num_repairs,
            "waiting": {due: list(layers) for due, layers in self.waiting.items()},
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self.statistics.load_state_dict(state["kept"])
        self.num_repairs = state["num_repairs"]
        self.waiting = {due: list(layers) for due, layers in state["waiting"].items()}


def read_statistics(trainer: Trainer, pending: Pending) -> None:
    """Write down what the check of a step found; layers to be estimated anew, and a run to be ended, wait."""
    sick = trainer.ranks.of_first(pending.statistics.read()) if pending.statistics is not None else []
    if sick:
        _write_down(trainer, sick, "step", pending.step)
        if trainer.batchnorm.statistics.repair != "none":
            trainer.batchnorm.waiting[pending.step + 1 + LAG] = [layer.name for layer in sick]


def check_statistics_now(trainer: Trainer, when: When) -> None:
    """Look, repair and wait for the answer, where no step is in flight.

    Raises:
        Halted: more checks than ``max_repairs`` had to repair.
    """
    care = trainer.batchnorm
    # a state that a step was refused in is no check of its own: without the step there would have been none
    findings = care.statistics.check(torch.ones((), device=trainer.device) if when == "refusal" else None)
    sick = trainer.ranks.of_first(findings.read() if findings is not None else [])
    if not sick:
        return
    _write_down(trainer, sick, when, trainer.step)
    if care.statistics.repair != "none":
        _finish(trainer, [[layer.name for layer in sick]])


def finish_repairs(trainer: Trainer, *, ends: bool) -> None:
    """Estimate anew what waits for this step, at the end of the training all that waits.

    Raises:
        Halted: more checks than ``max_repairs`` had to repair.
    """
    waiting = trainer.batchnorm.waiting
    due = [step for step in sorted(waiting) if ends or step <= trainer.step]
    if due:
        _finish(trainer, [waiting.pop(step) for step in due])


def _finish(trainer: Trainer, checks: Sequence[Sequence[str]]) -> None:
    """Count the checks that had to repair, and estimate their layers anew."""
    care, max_repairs = trainer.batchnorm, trainer.config.stability.batchnorm.max_repairs
    care.num_repairs += len(checks)
    layers = list(dict.fromkeys(itertools.chain.from_iterable(checks)))
    if care.statistics.repair == "reestimate":
        _reestimate(trainer, layers)
    if max_repairs is not None and care.num_repairs > max_repairs:
        raise Halted(
            f"running statistics had to be repaired at {care.num_repairs} checks, more than"
            f" stability.batchnorm.max_repairs {max_repairs}; last {layers[0]}"
        )


def _reestimate(trainer: Trainer, names: Sequence[str]) -> None:
    """From the batches that come next, so that it depends on nothing but the step and the network."""
    statistics, runner = trainer.batchnorm.statistics, trainer.runner
    num_batches = trainer.config.stability.batchnorm.reestimate_batches
    with random_state_kept():
        batches = itertools.islice(trainer.batches.from_step(trainer.step), num_batches)
        layers = {name: statistics.layers[name] for name in names}
        clean = reestimate(runner.network, layers, batches, runner.look_at)
    statistics.check()  # which keeps what is sound now
    for name, count in clean.items():
        trainer.records.events.write(
            "batchnorm_reestimated" if count else "batchnorm_not_reestimated",
            trainer.step,
            trainer.update,
            layer=name,
            num_clean_passes=count,
            num_batches=num_batches,
        )


def _write_down(trainer: Trainer, sick: Sequence[SickLayer], when: When, step: int) -> None:
    repair = trainer.batchnorm.statistics.repair
    if any(layer.num_nan or layer.num_inf for layer in sick):
        trainer.records.nonfinite(step, what="running statistics")
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
            trainer.records.events.write("batchnorm_sick", step, trainer.update, **found)
            continue
        trainer.records.events.write(
            "batchnorm_repaired",
            step,
            trainer.update,
            **found,
            repair="restore" if repair == "reestimate" else repair,  # at once; the estimate follows
            num_masked=int(repair == "reset"),
        )
