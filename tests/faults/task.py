"""The training in which the faults of the matrix happen: small, with every part that a fault can hit.

x (4) -> encoder -> BatchNorm -> ReLU -> fault point -> head, plus a skip from x past the normalisation, so that a
spike of the input is one of the loss too. The fault comes whenever its batch comes, and its batch comes once. Gradients
that overflow fp16 need no fault here: a loss scale that has grown too far makes them.
"""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from typing import Any, cast

import torch
from torch import Tensor, nn

from hpcstab.seeds import keyed_seed
from hpcstab.task import StepContext
from tests.training.toy import Config, Items, ToyTask

NUM_ITEMS = 128
"""An epoch of 16 batches, so that no item comes twice in a training of 15 steps."""
BAD_SAMPLE = 3
"""The sample of the batch whose input is at fault."""
_SPIKE = 1e5
_NORM_OVERFLOW = 1e25  # finite in fp32, its square is not
_BAD_INPUT = {"nan": math.nan, "inf": math.inf, "spike": _SPIKE}


class _GradientTimes(torch.autograd.Function):
    """The identity, whose backward multiplies by a factor."""

    @staticmethod
    def forward(ctx: Any, features: Tensor, factor: float) -> Tensor:
        ctx.factor = factor
        return features.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        return gradients[0] * ctx.factor, None


class _GradientOver(torch.autograd.Function):
    """The identity, whose backward divides by a number that is zero."""

    @staticmethod
    def forward(ctx: Any, features: Tensor) -> Tensor:
        return features.clone()

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        return (gradients[0] / torch.zeros_like(gradients[0][:, :1]),)


class ActivationFault(nn.Module):
    """Identity until it is armed; then an operation with finite inputs whose output is what is wanted."""

    kind: str | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "nan":
            return features + torch.log(-1.0 - features.square())
        if self.kind == "inf":
            return features + (features.detach() * 0.0).reciprocal()
        if self.kind == "spike":
            return features * _SPIKE
        if self.kind == "fp16_overflow":
            return torch.exp2(16.0 + features.half().square()).to(features.dtype)
        return features


class GradientFault(nn.Module):
    """Identity, forward; armed, its backward makes what is wanted out of finite gradients."""

    kind: str | None = None

    def forward(self, features: Tensor) -> Tensor:
        if self.kind == "nan":  # the root's derivative at zero is infinite, times zero
            return features + (features * 0.0).square().sum(1, keepdim=True).sqrt()
        if self.kind == "inf":
            return cast(Tensor, _GradientOver.apply(features))
        if self.kind == "spike":
            return cast(Tensor, _GradientTimes.apply(features, _SPIKE))
        if self.kind == "norm_overflow":
            return cast(Tensor, _GradientTimes.apply(features, _NORM_OVERFLOW))
        return features


class FaultNetwork(nn.Module):
    """(B, 4) -> (B, 2)."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder = nn.Linear(4, 8)
        self.norm = nn.BatchNorm1d(8)
        self.activation = ActivationFault()
        self.gradient = GradientFault()
        self.head = nn.Linear(8, 2)
        self.skip = nn.Linear(4, 2)

    def forward(self, inputs: Tensor) -> Tensor:
        hidden = torch.relu(self.norm(self.encoder(inputs)))
        outputs: Tensor = self.head(self.gradient(self.activation(hidden))) + self.skip(inputs)
        return outputs.float()  # losses are fp32 under autocast too


class FaultTask(ToyTask):
    """The toy's data and loss, with the fault ``(kind, site)`` in the batch of ``step``; -1: in none.

    A bad input lies in the data, at the place ``bad_sample`` of its batch; of two ranks the odd places are those of
    rank 1.
    """

    def __init__(
        self, config: Config, kind: str = "", site: str = "", step: int = -1, *, bad_sample: int = BAD_SAMPLE
    ) -> None:
        super().__init__(config)
        self._kind, self._site, self._step = kind, site, step
        items = Items(NUM_ITEMS, 1)
        if step >= 0 and site == "input":
            items.inputs[batch_indices(step, config.data.batch_size)[bad_sample]] = _BAD_INPUT[kind]
        self._items["train"] = items

    def network(self) -> nn.Module:
        return FaultNetwork()

    def loss_terms(self, network: nn.Module, batch: Any, context: StepContext) -> Mapping[str, Tensor]:
        armed = self._kind if context.step == self._step else None
        with _armed(cast(FaultNetwork, network), self._site, armed):
            terms = dict(super().loss_terms(network, batch, context))
        if armed and self._site == "loss_term":
            terms["size"] = _with_bad_value(terms["size"], armed)
        return terms


def batch_indices(step: int, batch_size: int) -> Tensor:
    """The items of a step, in the order in which they are drawn."""
    epoch, position = divmod(step, NUM_ITEMS // batch_size)
    order = torch.randperm(NUM_ITEMS, generator=torch.Generator().manual_seed(keyed_seed(0, "permutation", epoch)))
    return order[position * batch_size : (position + 1) * batch_size]


@contextlib.contextmanager
def _armed(network: FaultNetwork, site: str, kind: str | None) -> Iterator[None]:
    """For one forward pass: an evaluation has no fault."""
    network.activation.kind = kind if site == "activation" else None
    network.gradient.kind = kind if site == "gradient" else None
    yield
    network.activation.kind = network.gradient.kind = None


def _with_bad_value(term: Tensor, kind: str) -> Tensor:
    if kind == "nan":
        return term + torch.log(-1.0 - term.detach())
    if kind == "inf":
        return term + (term.detach() * 0.0).reciprocal()
    return term * (_SPIKE if kind == "spike" else _NORM_OVERFLOW)
