"""Buffers that a forward pass changes (BatchNorm statistics and the like): kept before it, put back after a refusal."""

from __future__ import annotations

import itertools
import math
from dataclasses import dataclass

import torch
from torch import Tensor, nn


class BufferRing:
    """Copies of all buffers of the last ``size`` steps.

    A copy a step is all that a healthy step pays: nothing is put back on the device, since a refused step and those
    after it run again from the state before it.

    Constant buffers (masks, tables) are copied too. That nothing has written to one cannot be known without reading it:
    BatchNorm's kernels, ``.data`` and ``.numpy()`` write without counting up ``Tensor._version``.
    """

    def __init__(self, network: nn.Module, size: int) -> None:
        self.size = size
        # by owner and name: a module may assign a new tensor to its buffer
        found = [
            (f"{path}.{name}" if path else name, module, name)
            for path, module in network.named_modules()
            for name, buffer in module._buffers.items()
            if buffer is not None
        ]
        # by type: copies of one type are one kernel for many tensors, a mixture is a kernel for each
        found.sort(key=lambda place: str(place[1]._buffers[place[2]].dtype))
        self._names = [path for path, _, _ in found]
        self._places = [(module._buffers, name) for _, module, name in found]
        current = self.current()
        self._groups = _groups([buffer.dtype for buffer in current])
        self._slots = [[torch.empty_like(buffer) for buffer in current] for _ in range(size)]
        # a mask of -inf is a buffer too: only what was finite has to stay so
        self._watched = [
            index
            for index, buffer in enumerate(current)
            if buffer.is_floating_point() and buffer.numel() and bool(buffer.isfinite().all())
        ]
        self._areas = _areas(current, self._watched)

    @torch.no_grad()
    def keep(self, step: int) -> None:
        """Copy the buffers as they are before the forward pass of ``step``."""
        self._copy(self._now(), self._slots[step % self.size])

    @torch.no_grad()
    def put_back(self, step: int) -> None:
        """Make the buffers again what they were before the forward pass of ``step``, one of the last ``size``."""
        self._copy(self._slots[step % self.size], self._now())

    def kept(self, step: int) -> dict[str, Tensor]:
        """The buffers as they were before the forward pass of ``step``, one of the last ``size``, by name."""
        return dict(zip(self._names, self._slots[step % self.size], strict=True))

    def watched(self) -> dict[str, Tensor]:
        """Buffers that were finite at first, by name: they have to stay so."""
        current = self.current()
        return {self._names[index]: current[index] for index in self._watched}

    @torch.no_grad()
    def largest(self) -> list[Tensor]:
        """The largest absolute value of all watched buffers, 0-d: NaN or inf where one is; one for each type.

        By way of a copy into one piece of memory: a norm of every buffer would be a small tensor for each.
        """
        if not self._areas:
            return []
        now = self._now()
        for area in self._areas:
            # reshape is a call for each, and those of BatchNorm need none
            parts = [now[place] if is_flat else now[place].reshape(-1) for place, is_flat in area.places]
            torch.cat(parts, out=area.memory)
        return [torch.linalg.vector_norm(area.memory, math.inf) for area in self._areas]

    def current(self) -> list[Tensor]:
        """All buffers as they are now, not copied, without their history."""
        return [buffer.detach() if buffer.requires_grad else buffer for buffer in self._now()]

    def _now(self) -> list[Tensor]:
        return [buffers[name] for buffers, name in self._places]

    def _copy(self, source: list[Tensor], target: list[Tensor]) -> None:
        for first, last in self._groups:
            torch._foreach_copy_(target[first:last], source[first:last])


@dataclass(frozen=True)
class _Area:
    """Memory for the watched buffers of one type; ``places`` among all buffers, and whether each has one axis."""

    memory: Tensor
    places: list[tuple[int, bool]]


def _areas(buffers: list[Tensor], watched: list[int]) -> list[_Area]:
    areas = []
    for dtype in dict.fromkeys(buffers[place].dtype for place in watched):
        places = [place for place in watched if buffers[place].dtype == dtype]
        memory = torch.zeros(sum(buffers[place].numel() for place in places), dtype=dtype, device=buffers[0].device)
        areas.append(_Area(memory, [(place, buffers[place].ndim == 1) for place in places]))
    return areas


def _groups(dtypes: list[torch.dtype]) -> list[tuple[int, int]]:
    """(first, behind the last) of each run of one type."""
    starts = [index for index, dtype in enumerate(dtypes) if index == 0 or dtype != dtypes[index - 1]]
    return list(itertools.pairwise([*starts, len(dtypes)]))
