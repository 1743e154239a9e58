"""Steps of a loop that is not ours: what has to be kept so that one can run again."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcstab.stability.deferred import Deferred
from hpcstab.stability.gate.clipping import clip_scale_of
from hpcstab.stability.gate.decision import Decision, GateFigures
from hpcstab.stability.random_state import RandomSnapshot


@dataclass(eq=False)
class Given:
    """A batch that the loop was given; ``random``: the generators before its body, None until it had it."""

    batch: Any
    random: RandomSnapshot | None = None

    def begin(self) -> None:
        """Before the loop's body has the batch, for the first time or again."""
        if self.random is None:
            self.random = RandomSnapshot.take()
        else:
            self.random.put()


@dataclass(frozen=True)
class Schedule:
    """What schedulers change with every update: their own state, and all of the optimizers but tensors of state."""

    groups: list[list[dict[str, Any]]]
    schedulers: list[dict[str, Any]]

    @classmethod
    def take(cls, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> Schedule:
        return cls(
            [[_own(group) for group in optimizer.param_groups] for optimizer in optimizers],
            [copy.deepcopy(scheduler.state_dict()) for scheduler in schedulers],
        )

    def put(self, optimizers: Sequence[torch.optim.Optimizer], schedulers: Sequence[Any]) -> None:
        """Make it what it was."""
        for scheduler, state in zip(schedulers, self.schedulers, strict=True):
            scheduler.load_state_dict(copy.deepcopy(state))
        for optimizer, groups in zip(optimizers, self.groups, strict=True):
            for group, kept in zip(optimizer.param_groups, groups, strict=True):
                for name, value in kept.items():
                    if isinstance(value, Tensor):
                        group[name].copy_(value)  # a learning rate that lives on the device
                    else:
                        group[name] = value


def _own(group: Mapping[str, Any]) -> dict[str, Any]:
    return {
        name: value.clone() if isinstance(value, Tensor) else value for name, value in group.items() if name != "params"
    }


@dataclass(frozen=True)
class Figures:
    """What a step said, read from the device."""

    loss: float
    grad_norm: float
    clip_scale: float
    bad: bool
    refused: bool
    buffers_finite: bool


@dataclass
class Turn:
    """One step that was given to the device and not read yet.

    Attributes:
        step: its index among all steps of the loop, those that were left out included.
        given: its batches; several where gradients accumulate.
        gradients_finite: whether each gradient is, though their norm is not; None where nobody looked.
    """

    step: int
    given: list[Given]
    schedule: Schedule
    deferred: Deferred
    refuses: bool
    gradients_finite: bool | None = None

    @classmethod
    def of(cls, step: int, given: list[Given], schedule: Schedule, decision: Decision) -> Turn:
        return cls(step, given, schedule, Deferred(decision.figures), decision.refuses)

    def put_random(self) -> None:
        """Make the generators what they were before the step's first batch."""
        random = self.given[0].random
        assert random is not None, "a step has begun with its batch"
        random.put()

    def read(self) -> Figures:
        """Waits for the device where the step is not done."""
        said = GateFigures.of(self.deferred.read())
        clip_scale, refused = clip_scale_of(said.clip_divisor), said.bad and self.refuses
        return Figures(said.loss, said.grad_norm, clip_scale, said.bad, refused, said.buffers_finite)
