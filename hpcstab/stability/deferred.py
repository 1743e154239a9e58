"""Figures that are on their way from the device: asked for now, read some steps later, so that nobody waits."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor


class Deferred:
    """A vector of figures; on a GPU its copy to pinned memory begins at once and is waited for when it is read."""

    def __init__(self, values: Tensor) -> None:
        self._event: torch.cuda.Event | None = None
        self._values = values
        if values.is_cuda:
            self._values = torch.empty(values.shape, dtype=values.dtype, pin_memory=True)
            self._values.copy_(values, non_blocking=True)
            self._event = torch.cuda.Event()  # type: ignore[no-untyped-call]
            self._event.record()

    def read(self) -> list[float]:
        """The figures; waits for the device where they are not there yet."""
        if self._event is not None:
            self._event.synchronize()
        figures: list[float] = self._values.tolist()
        return figures


@torch.no_grad()
def stacked(figures: Sequence[Tensor]) -> Tensor:
    """0-d figures of any type as one vector that loses nothing: fp32 where all fit in it, else fp64.

    Almost all are fp32 already, and a conversion is a kernel for each.
    """
    fits = all(figure.dtype in (torch.float32, torch.bfloat16, torch.float16, torch.bool) for figure in figures)
    dtype = torch.float32 if fits else torch.float64
    return torch.stack([figure if figure.dtype == dtype else figure.to(dtype) for figure in figures])
