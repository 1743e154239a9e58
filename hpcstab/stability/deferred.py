"""Figures that are on their way from the device: asked for now, read some steps later, so that nobody waits."""

from __future__ import annotations

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
