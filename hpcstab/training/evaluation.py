"""One pass over held-out data, with bad batches counted and never averaged in."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import nn
from torch.utils.data import DataLoader

from hpcstab.task import Partial, StepContext, Task
from hpcstab.training.batches import to_device


@dataclass(frozen=True)
class Evaluation:
    """The metrics of one pass; ``failed`` are the batches whose sums were not finite."""

    metrics: dict[str, float]
    num_batches: int
    failed: tuple[int, ...]
    seconds: float

    @property
    def empty(self) -> bool:
        """No batch was valid: there are no metrics."""
        return self.num_batches == len(self.failed)


def evaluate(task: Task, network: nn.Module, context: StepContext, on_batch: Callable[[], None]) -> Evaluation:
    """Evaluate on the validation split; ``on_batch`` is called after each batch (heartbeat)."""
    started = time.perf_counter()
    dataset = task.dataset("validation")
    totals: dict[str, Partial] = {}
    failed = []
    num_batches = 0
    was_training = network.training
    network.eval()
    with torch.no_grad():
        for index, batch in enumerate(DataLoader(dataset, batch_size=task.eval_batch_size)):  # type: ignore[arg-type]
            partials = task.evaluate(network, to_device(batch, context.device), context)
            num_batches += 1
            if _finite(partials.values()):
                totals = {name: totals[name].merge(part) if name in totals else part for name, part in partials.items()}  # type: ignore[arg-type]
            else:
                failed.append(index)
            on_batch()
    network.train(was_training)
    metrics = dict(task.summarize({name: float(part.value) for name, part in totals.items()})) if totals else {}
    return Evaluation(metrics, num_batches, tuple(failed), time.perf_counter() - started)


def _finite(partials: object) -> bool:
    return all(bool(partial.value.isfinite().all()) for partial in partials)  # type: ignore[attr-defined]
