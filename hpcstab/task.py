"""The protocol between a model and the trainer.

A task gives a network, data, loss terms, an evaluation and baselines; the trainer owns everything
else: weights and phases of the terms, precision, optimizer, measuring, recording. Torch appears in
annotations only, so that configs can be shown without loading it.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Protocol

from hpcstab.config import RunConfig
from hpcstab.config.common import OptimizerConfig

if TYPE_CHECKING:
    import numpy as np
    import torch
    from torch import Tensor, nn

Split = Literal["train", "validation"]
Batch = Any
"""What the default collation of the data set's items gives: tensors, or tuples or dicts of them."""


@dataclass(frozen=True)
class Metric:
    """A figure of an evaluation. ``primary`` of the YAML's compare names one of them."""

    name: str
    unit: str
    direction: Literal["higher", "lower"]
    about: str


@dataclass(frozen=True)
class Baseline:
    """Scores without this training.

    ``floor``: what a network that learned nothing reaches; learned means better than the best floor.
    ``reference``: another method, only shown beside.
    """

    name: str
    role: Literal["floor", "reference"]
    scores: Mapping[str, float]


@dataclass(frozen=True)
class Sum:
    """A quantity of an evaluation batch that adds up over batches and ranks."""

    value: Tensor

    def merge(self, other: Sum) -> Sum:
        return Sum(self.value + other.value)


@dataclass(frozen=True)
class Maximum:
    """A quantity of an evaluation batch whose largest value counts over batches and ranks."""

    value: Tensor

    def merge(self, other: Maximum) -> Maximum:
        return Maximum(self.value.maximum(other.value))


Partial = Sum | Maximum


@dataclass(frozen=True)
class Picture:
    """One sample to look at: grey (H, W) or colour (H, W, 3), uint8."""

    name: str
    pixels: np.ndarray[Any, np.dtype[np.uint8]]


class StepContext(Protocol):
    """What a task may use and record during one step; nothing here waits for the device.

    ``step`` is the batch position, ``epoch`` the pass over the training items. Counts and diagnostics stay
    device tensors; the trainer reads them with the other signals of the step.
    """

    seed: int
    step: int
    epoch: int
    device: torch.device

    def generator(self, purpose: str) -> torch.Generator:
        """A generator on the step's device, keyed by (seed, purpose, step)."""
        ...

    def diagnostic(self, name: str, value: Tensor) -> None:
        """Record a scalar of a diagnostic that the task declares."""
        ...

    def count_masked(self, firings: Tensor) -> None:
        """Count firings of a fix of kind ``mask`` (a scalar count, or a boolean tensor)."""
        ...

    def count_limited(self, firings: Tensor) -> None:
        """Count firings of a fix of kind ``limit`` inside the model."""
        ...


class TaskDataset(Protocol):
    """A map-style, picklable data set; ``ids[i]`` names item i in events, capsules and seeds."""

    ids: Sequence[str]

    def __len__(self) -> int: ...

    def __getitem__(self, index: int) -> Any: ...


class Task(Protocol):
    """A model and its data, as the trainer sees them. Built as ``Task(config, seed)``.

    Where the loss is no mean over samples, an attribute ``joins_samples: tuple[str, ...]`` names what in it is none:
    with several ranks that sees a share of a batch, and the report says so. BatchNorm is found without it.
    """

    Config: ClassVar[type[RunConfig]]
    metrics: tuple[Metric, ...]
    loss_term_names: tuple[str, ...]
    diagnostics: tuple[str, ...]
    eval_batch_size: int

    def network(self) -> nn.Module:
        """A new network; the trainer has seeded torch's generators before the call."""
        ...

    def dataset(self, split: Split) -> TaskDataset:
        """Items of a split; what an item of an evaluation split is, the task decides."""
        ...

    def loss_terms(self, network: nn.Module, batch: Batch, context: StepContext) -> Mapping[str, Tensor]:
        """Unweighted scalar terms, under the names of ``losses.weights``."""
        ...

    def evaluate(self, network: nn.Module, batch: Batch, context: StepContext) -> Mapping[str, Partial]:
        """Mergeable quantities of one evaluation batch, without gradients."""
        ...

    def summarize(self, totals: Mapping[str, float]) -> Mapping[str, float]:
        """The metrics from the merged quantities, called once an evaluation."""
        ...

    def baselines(self) -> Sequence[Baseline]:
        """Scores on this run's own held-out data; at least one floor for the primary metric."""
        ...

    def data_facts(self) -> Mapping[str, int | float | str]:
        """What the data are: source, counts of items, counts of distinct ones."""
        ...

    def samples(self, network: nn.Module, context: StepContext) -> Sequence[Picture]:
        """Pictures of what the network does on held-out data."""
        ...

    def check_data(self) -> Sequence[DataFinding]:
        """One pass over all data before anything is queued: what is wrong with them."""
        ...


FindingKind = Literal[
    "non_finite", "constant", "range", "shape", "grid", "dtype", "labels", "missing", "unreadable", "duplicate"
]
"""``grid``: shape or spacing of scans that belong together; ``missing``: the other half of a pair."""


@dataclass(frozen=True)
class DataFinding:
    """Something wrong with the data: ``count`` samples of ``split`` (or of ``all``, before they were split)."""

    kind: FindingKind
    split: str
    count: int
    message: str


class OwnOptimizers(Protocol):
    """What a task may offer beside :class:`Task`: optimizers of its own for parts of the network."""

    def optimizers(self, network: nn.Module) -> Mapping[str, tuple[OptimizerConfig, Sequence[Tensor]]]:
        """By name: the config of each and its parameters; every parameter that is trained has exactly one.

        Without it ``config.optimizer`` steps all of them. One gate decision covers all optimizers; the schedule of
        ``config.optimizer`` is theirs too, each from its own rate.
        """
        ...


TaskFactory = Callable[[Any, int], Task]
