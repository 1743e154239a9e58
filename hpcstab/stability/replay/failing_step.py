"""A step that can be run again and again from the same state, in whole or in part."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal, Protocol

import torch
from torch import Tensor, nn

from hpcstab.stability.gate.clipping import total_grad_norm
from hpcstab.stability.random_state import put_random_state
from hpcstab.stability.replay.lineage import is_finite

Batch = Any
Precision = Literal["recorded", "fp32", "fp64"]


class Gradients(Protocol):
    """Forward and backward of one step: leaves gradients on the parameters.

    Args:
        batch: of the step, or a part of it.
        precision: ``recorded`` is the training's own; ``fp32`` and ``fp64`` run without autocast and loss scale (the
            network and the batch are fp64 already).
        term: only this loss term; None for the weighted sum.

    Returns:
        The loss (0-d, without the loss scale) and the figures that go with it, such as ``loss_<term>``.
    """

    def __call__(
        self, batch: Batch, *, precision: Precision, term: str | None
    ) -> tuple[Tensor, Mapping[str, Tensor]]: ...


@dataclass(frozen=True)
class Measured:
    """What a run of the step gave. ``error``: it could not run, for this reason."""

    loss: float = math.nan
    grad_norm: float = math.nan
    buffers_finite: bool = True
    figures: Mapping[str, float] = field(default_factory=dict)
    error: str = ""

    @property
    def finite(self) -> bool:
        """Loss, gradient norm and buffers are."""
        return not self.error and math.isfinite(self.loss) and math.isfinite(self.grad_norm) and self.buffers_finite

    def equals(self, other: Measured) -> bool:
        """Whether all that both measured is the same to the bit; NaN equals NaN."""
        ours, theirs = ({"loss": each.loss, "grad_norm": each.grad_norm, **each.figures} for each in (self, other))
        return all(same_float(ours[name], theirs[name]) for name in ours.keys() & theirs.keys())


class SeveralOptimizers(Protocol):
    """Several optimizers that step together."""

    @property
    def state(self) -> Mapping[Tensor, Any]: ...

    def __iter__(self) -> Iterator[torch.optim.Optimizer]: ...


@dataclass
class FailingStep:
    """State, batch and random state of a step, and the function that runs it.

    Attributes:
        ids: of the samples, along the leading dimension of the batch; may be empty.
        terms: names of the loss terms; may be empty.
        dtype: number format of forward and backward, e.g. ``bf16``.
        loss_scale: the factor that ``gradients`` puts on the loss, and so on the gradients.
        num_parts: micro-batches that the batch is cut into.
        averages: of the parameters (EMA), by name; may be empty.
    """

    network: nn.Module
    optimizer: torch.optim.Optimizer | SeveralOptimizers
    batch: Batch
    gradients: Gradients
    random_state: Mapping[str, Any]
    ids: tuple[str, ...] = ()
    terms: tuple[str, ...] = ()
    dtype: str = "fp32"
    loss_scale: float = 1.0
    num_parts: int = 1
    averages: Mapping[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._parameters = [(parameter, parameter.detach().clone()) for parameter in self.network.parameters()]
        self._buffers = [
            (module, name, buffer, buffer.detach().clone())
            for module in self.network.modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]

    @property
    def num_samples(self) -> int:
        """B: the number of ids, or the leading dimension of the first tensor of the batch."""
        if self.ids:
            return len(self.ids)
        return next((tensor.shape[0] for _, tensor in leaves(self.batch) if tensor.ndim), 1)

    def rewind(self) -> None:
        """Parameters, buffers and random state are those before the step; there are no gradients."""
        for parameter, kept in self._parameters:
            parameter.data = kept.clone()
            parameter.grad = None
        self.rewind_buffers()
        put_random_state(dict(self.random_state))

    def rewind_buffers(self) -> None:
        """Buffers are those before the step."""
        for module, name, buffer, kept in self._buffers:
            buffer.data = kept.clone()
            module._buffers[name] = buffer

    def measure(
        self, batch: Batch | None = None, precision: Precision = "recorded", term: str | None = None
    ) -> Measured:
        """Run the step from its state; what prevents it is in the answer, since a re-run is a question."""
        self.rewind()
        return self.measure_here(batch, precision, term)

    def measure_here(
        self, batch: Batch | None = None, precision: Precision = "recorded", term: str | None = None
    ) -> Measured:
        """The same from the parameters as they are now."""
        batch = self.batch if batch is None else batch
        if precision == "fp64":
            self.network.double()
            batch = _doubled(batch)
        try:
            loss, figures = self.gradients(batch, precision=precision, term=term)
        except (RuntimeError, ValueError, IndexError, TypeError) as error:
            return Measured(error=f"{type(error).__name__}: {str(error).strip().splitlines()[0]}")
        norm = total_grad_norm(parameter for parameter in self.network.parameters() if parameter.requires_grad)
        scale = self.loss_scale if precision == "recorded" else 1.0
        return Measured(
            loss=float(loss.detach().double()),
            grad_norm=float((norm / torch.full((), scale)).double()) if scale != 1.0 else float(norm.double()),
            buffers_finite=not self.newly_bad_buffers(),
            figures={name: float(value.detach().double()) for name, value in figures.items()},
        )

    def newly_bad_buffers(self) -> list[tuple[str, Tensor]]:
        """(name, buffer) of those that were finite before the step and are not now."""
        paths = {module: path for path, module in self.network.named_modules()}
        found = []
        for module, name, _, kept in self._buffers:
            now = module._buffers[name]
            if now is not None and not is_finite(now) and is_finite(kept):
                found.append((f"{paths[module]}.{name}".lstrip("."), now.detach()))
        return found


def same_float(first: float, second: float) -> bool:
    """Equal to the bit, where all NaN count as one."""
    return first == second or (math.isnan(first) and math.isnan(second))


def leaves(batch: Batch, name: str = "batch") -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of all tensors in a batch: ``batch[0]``, ``batch['image']``."""
    if isinstance(batch, Tensor):
        yield name, batch
    elif isinstance(batch, Mapping):
        for key, value in batch.items():
            yield from leaves(value, f"{name}[{key!r}]")
    elif isinstance(batch, (list, tuple)):
        for index, value in enumerate(batch):
            yield from leaves(value, f"{name}[{index}]")


def without_samples(batch: Batch, samples: tuple[int, ...], num_samples: int) -> Batch:
    """The batch with some samples left out of all tensors that have a sample dimension."""
    if isinstance(batch, Tensor):
        if not batch.ndim or batch.shape[0] != num_samples:
            return batch
        return batch[[index for index in range(num_samples) if index not in samples]]
    if isinstance(batch, Mapping):
        return {key: without_samples(value, samples, num_samples) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(without_samples(value, samples, num_samples) for value in batch)
    return batch


def _doubled(batch: Batch) -> Batch:
    if isinstance(batch, Tensor):
        return batch.double() if batch.is_floating_point() else batch
    if isinstance(batch, Mapping):
        return {key: _doubled(value) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(_doubled(value) for value in batch)
    return batch
