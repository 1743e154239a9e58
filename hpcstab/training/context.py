"""What a task sees of the step it is in."""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from hpcstab.seeds import keyed_seed


@dataclass
class TrainingContext:
    """The :class:`hpcstab.task.StepContext` of one step."""

    seed: int
    step: int
    epoch: int
    device: torch.device
    micro_batch: int = 0
    rank: int = 0
    diagnostics: dict[str, Tensor] = field(default_factory=dict)
    _masked: list[Tensor] = field(default_factory=list)
    _limited: list[Tensor] = field(default_factory=list)

    def generator(self, purpose: str) -> torch.Generator:
        part = (self.micro_batch, self.rank) if self.micro_batch or self.rank else ()
        return torch.Generator(self.device).manual_seed(keyed_seed(self.seed, purpose, self.step, *part))

    def diagnostic(self, name: str, value: Tensor) -> None:
        self.diagnostics[name] = value.detach()

    def count_masked(self, firings: Tensor) -> None:
        self._masked.append(firings.detach().sum())

    def count_limited(self, firings: Tensor) -> None:
        self._limited.append(firings.detach().sum())

    def counts(self) -> tuple[Tensor | None, Tensor | None]:
        """(masks fired, limits fired) in this step, float64 scalars on the device; None where the task counts none."""
        return _sum(self._masked), _sum(self._limited)


def _sum(firings: list[Tensor]) -> Tensor | None:
    return torch.stack([firing.double() for firing in firings]).sum() if firings else None
