"""Figures that are on their way from the device: asked for now, read some steps later, so that nobody waits."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import torch
from torch import Tensor


class Deferred:
    """A copy of a vector of figures; of a GPU's it begins at once, to pinned memory, and is waited for when read."""

    def __init__(self, values: Tensor) -> None:
        self._values: Tensor | _PinnedCopy | list[float] = _PinnedCopy.of(values) if values.is_cuda else values.clone()

    def read(self) -> list[float]:
        """The figures; waits for the device where they are not there yet."""
        if not isinstance(self._values, list):
            self._values = self._values.tolist()
        return self._values


class _PinnedCopy:
    """A copy on its way to the host. Memory and event are used again: to make them costs more than the copy."""

    _free: ClassVar[dict[tuple[int, torch.dtype], list[_PinnedCopy]]] = {}

    def __init__(self, size: int, dtype: torch.dtype) -> None:
        self._memory = torch.empty(size, dtype=dtype, pin_memory=True)
        self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]

    @classmethod
    def of(cls, values: Tensor) -> _PinnedCopy:
        kind = (len(values), values.dtype)
        free = cls._free.setdefault(kind, [])
        copy = free.pop() if free else cls(*kind)
        copy._memory.copy_(values, non_blocking=True)
        copy._event.record()
        return copy

    def tolist(self) -> list[float]:
        """Wait, and give the memory back: once."""
        self._event.synchronize()
        figures: list[float] = self._memory.tolist()
        self._free[len(self._memory), self._memory.dtype].append(self)
        return figures


@torch.no_grad()
def stacked(figures: Sequence[Tensor]) -> Tensor:
    """0-d figures of any type as one vector that loses nothing: fp32 where all fit in it, else fp64.

    Almost all are fp32 already, and a conversion is a kernel for each.
    """
    fits = all(figure.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.bool) for figure in figures)
    dtype = torch.float32 if fits else torch.float64
    return torch.stack([figure if figure.dtype == dtype else figure.to(dtype) for figure in figures])
