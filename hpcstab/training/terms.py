"""Each loss term on its own: its share of the gradient, and whether it went bad."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from hpcstab.stability.deferred import Deferred
from hpcstab.stability.gate.gate import Gate


@dataclass(frozen=True)
class TermNorms:
    """Gradient norm of every weighted term, on their way from the device."""

    weights: Mapping[str, float]
    deferred: Deferred

    def read(self) -> Iterator[tuple[str, float, float, float]]:
        """(term, weight, gradient norm, its share of the sum of the norms); a share of nothing is NaN."""
        norms = self.deferred.read()
        total = sum(norms)
        for (term, weight), norm in zip(self.weights.items(), norms, strict=True):
            yield term, weight, norm, norm / total if total else math.nan


def measure_terms(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], gate: Gate, parameters: Sequence[Tensor]
) -> TermNorms:
    """A backward pass for each term that counts; the graph stays for the step's own.

    A term of weight zero has norm zero, whatever it is.
    """
    norms = []
    for term, value in terms.items():
        gradients = _gradients(value, weights[term], gate, parameters)
        norm = get_total_norm(gradients) if gradients else value.new_zeros(())
        norms.append(norm.double() if gate.loss_scale is None else norm.double() / gate.loss_scale.value)
    return TermNorms({term: weights[term] for term in terms}, Deferred(torch.stack(norms)))


def bad_terms(
    terms: Mapping[str, Tensor], weights: Mapping[str, float], gate: Gate, parameters: Sequence[Tensor]
) -> dict[str, str]:
    """Terms that count and have a non-finite ``value``, or else a non-finite ``gradient``; waits for the device."""
    found = {}
    for term, value in terms.items():
        if not weights[term]:
            continue
        if not bool(value.isfinite()):
            found[term] = "value"
        elif not all(bool(each.isfinite().all()) for each in _gradients(value, weights[term], gate, parameters)):
            found[term] = "gradient"
    return found


def _gradients(value: Tensor, weight: float, gate: Gate, parameters: Sequence[Tensor]) -> list[Tensor]:
    """Gradients of weight x term, times the loss scale, where the term has an influence."""
    if not weight or not value.requires_grad:
        return []
    found = torch.autograd.grad(gate.scaled(weight * value), parameters, retain_graph=True, allow_unused=True)
    return [gradient for gradient in found if gradient is not None]
