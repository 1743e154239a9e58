"""Which operation made the non-finite values that a piece of memory holds.

Labels lie on storages, not on tensors, so that they follow views, saved activations and in-place writes. A labelled
storage is kept alive: its address cannot be given to another tensor while it is asked for.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Generic, TypeVar

import torch
from torch import Tensor

T = TypeVar("T")


def values_of(tensor: Tensor) -> Tensor:
    """The values that are stored: of a sparse tensor those that it has, in a dtype that can be compared."""
    values = tensor._values() if tensor.is_sparse else tensor
    return values.float() if values.is_floating_point() and values.element_size() == 1 else values


def is_finite(tensor: Tensor) -> bool:
    """Whether it holds no NaN and no infinity; waits for the device. Integers always are."""
    if not (tensor.is_floating_point() or tensor.is_complex()):
        return True
    return bool(values_of(tensor).isfinite().all())


def has_nan(tensor: Tensor) -> bool:
    """Whether it holds a NaN; waits for the device."""
    return (tensor.is_floating_point() or tensor.is_complex()) and bool(values_of(tensor).isnan().any())


def is_mask(tensor: Tensor) -> bool:
    """Whether all that is not finite in it is -inf, as in an additive attention mask; waits for the device."""
    return not has_nan(tensor) and not bool((tensor == torch.inf).any()) and not is_finite(tensor)


class Lineage(Generic[T]):
    """Labels on ranges of memory."""

    def __init__(self) -> None:
        self._labels: dict[int, list[tuple[int, int, T]]] = {}
        self._held: dict[int, torch.UntypedStorage] = {}

    def mark(self, tensor: Tensor, label: T) -> None:
        """What the tensor's memory holds now comes from ``label``; labels that it covers are forgotten."""
        self.clear(tensor)
        for storage, first, last in _memory(tensor):
            self._held[storage._cdata] = storage
            self._labels.setdefault(storage._cdata, []).append((first, last, label))

    def clear(self, tensor: Tensor) -> None:
        """The tensor's memory was seen finite: labels inside it are forgotten."""
        if not self._labels:
            return
        for storage, first, last in _memory(tensor):
            labels = self._labels.get(storage._cdata)
            if labels:
                labels[:] = [label for label in labels if label[0] < first or label[1] > last]

    def labels_of(self, tensor: Tensor) -> list[T]:
        """Labels of memory that the tensor touches, oldest first; none where nobody marked it."""
        return [
            label
            for storage, first, last in _memory(tensor)
            for begins, ends, label in self._labels.get(storage._cdata, ())
            if begins <= last and ends >= first
        ]


def same_memory(first: Tensor, second: Tensor) -> bool:
    """Whether one is a view of the other's storage."""
    storages = {storage._cdata for storage, _, _ in _memory(first)}
    return any(storage._cdata in storages for storage, _, _ in _memory(second))


def _memory(tensor: Tensor) -> Iterator[tuple[torch.UntypedStorage, int, int]]:
    """(storage, first and last byte) of what a tensor can touch."""
    values = tensor._values() if tensor.is_sparse else tensor
    if values.numel() == 0:
        return
    span = sum((size - 1) * stride for size, stride in zip(values.shape, values.stride(), strict=True))
    first = int(values.storage_offset()) * values.element_size()
    yield values.untyped_storage(), first, first + (int(span) + 1) * values.element_size() - 1
