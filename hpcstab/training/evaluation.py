"""One pass over held-out data: a bad batch is counted and named, and never averaged in."""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import nn
from torch.utils.data import DataLoader, Subset

from hpcstab.seeds import keyed_seed
from hpcstab.stability.modes import modes_kept
from hpcstab.stability.random_state import random_state_kept, seed_all
from hpcstab.task import Batch, Partial, Task
from hpcstab.training.batches import to_device
from hpcstab.training.context import TrainingContext

_MAX_REASON_CHARACTERS = 200


@dataclass
class EvaluationContext(TrainingContext):
    """Draws depend on seed, purpose and batch: all evaluations of a run see the same noise, and differ by the network
    alone."""

    batch: int = 0

    def generator(self, purpose: str) -> torch.Generator:
        return torch.Generator(self.device).manual_seed(keyed_seed(self.seed, "evaluation", purpose, self.batch))


@dataclass(frozen=True)
class FailedBatch:
    """A batch that raised, or whose sums are not finite; ``reason`` is one line."""

    index: int
    ids: tuple[str, ...]
    reason: str


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one pass. ``error`` is the first exception, where every batch raised one of its type."""

    metrics: dict[str, float]
    num_batches: int
    failed: tuple[FailedBatch, ...]
    seconds: float
    error: Exception | None = field(default=None, compare=False)

    @property
    def empty(self) -> bool:
        """No batch was valid: there are no metrics."""
        return self.num_batches == len(self.failed)


def evaluate(
    task: Task,
    network: nn.Module,
    context: EvaluationContext,
    on_batch: Callable[[], None],
    max_samples: int | None = None,
) -> Evaluation:
    """Evaluate on the validation split, or on its first ``max_samples`` items.

    Modes of the network and random generators are afterwards what they were. A batch fails by any exception of the
    task or of reading its items; only what is no Exception (a signal, an interrupt) ends the pass.

    Args:
        on_batch: called after each batch (heartbeat).
    """
    started = time.perf_counter()
    totals: dict[str, Partial] = {}
    failed: list[FailedBatch] = []
    errors = _Errors()
    groups = _groups_of_ids(task, max_samples)
    with torch.no_grad(), modes_kept(network), random_state_kept():
        network.eval()
        batches = _batches(task, max_samples)
        for index, ids in enumerate(groups):
            context.batch = index
            seed_all(keyed_seed(context.seed, "evaluation", index))
            try:
                partials = task.evaluate(network, to_device(next(batches), context.device), context)
                reason = _nonfinite(partials)
            except Exception as error:
                reason = errors.see(error)
            if reason:
                failed.append(FailedBatch(index, ids, reason))
            else:
                totals = {name: totals[name].merge(part) if name in totals else part for name, part in partials.items()}  # type: ignore[arg-type]
            on_batch()
    metrics = dict(task.summarize({name: float(part.value) for name, part in totals.items()})) if totals else {}
    common = errors.first if errors.count == len(groups) and len(errors.types) == 1 else None
    return Evaluation(metrics, len(groups), tuple(failed), time.perf_counter() - started, common)


class _Errors:
    """What batches raised; of the first its traceback too, without the tensors that its frames hold."""

    def __init__(self) -> None:
        self.first: Exception | None = None
        self.types: set[type[Exception]] = set()
        self.count = 0

    def see(self, error: Exception) -> str:
        """Remember it; its one line."""
        traceback.clear_frames(error.__traceback__)
        self.first = self.first or error
        self.types.add(type(error))
        self.count += 1
        lines = str(error).splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else ''}"[:_MAX_REASON_CHARACTERS]


def _batches(task: Task, max_samples: int | None) -> Iterator[Batch]:
    dataset: Any = task.dataset("validation")
    if max_samples is not None:
        dataset = Subset(dataset, range(min(max_samples, len(dataset))))
    return iter(DataLoader(dataset, batch_size=task.eval_batch_size))


def _groups_of_ids(task: Task, max_samples: int | None) -> list[tuple[str, ...]]:
    ids = list(task.dataset("validation").ids)[:max_samples]
    return [tuple(ids[first : first + task.eval_batch_size]) for first in range(0, len(ids), task.eval_batch_size)]


def _nonfinite(partials: Mapping[str, Partial]) -> str:
    """Names of the sums that are not finite, as a reason; empty where all are."""
    names = [name for name, partial in partials.items() if not bool(partial.value.isfinite().all())]
    return f"non-finite {', '.join(names)}" if names else ""
