"""One operation of a traced step: what it was, where it stands, what went in."""

from __future__ import annotations

import linecache
import math
import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Any, Literal

import torch
from torch import Tensor

from hpcstab.stability.replay.lineage import values_of

Direction = Literal["forward", "backward"]
Kind = Literal["created", "propagated", "placed", "uninitialised", "input", "state", "outside"]
"""``created``: finite inputs, non-finite output. ``placed``: an infinity that the code asked for, e.g. a mask.
``uninitialised``: memory that nobody wrote. ``input``: a tensor of the batch. ``state``: a parameter or buffer.
``outside``: a tensor that no operation of the step made."""

_TORCH = str(Path(torch.__file__).parent)
_OWN = {
    str(Path(__file__).with_name(name)) for name in ("operations.py", "tracer.py", "provenance.py", "failing_step.py")
}


@dataclass(frozen=True)
class Place:
    """A line of source; ``text`` is empty where the file is not there."""

    file: str
    line: int
    text: str

    def __str__(self) -> str:
        return f"{self.file}:{self.line}"


@dataclass(frozen=True)
class TensorFacts:
    """What a tensor held: figures are over its finite values, None where it has none.

    ``absmin`` is the smallest magnitude; ``num_nonfinite`` counts NaN and infinities.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    minimum: float | None
    maximum: float | None
    absmin: float | None
    absmax: float | None
    num_nonfinite: int


@dataclass
class Operation:
    """An operation whose output was not finite, or a tensor that was not before any ran.

    Attributes:
        index: its place in the order of operations; -1 for what was there before.
        name: ``aten.log.default``; of a tensor, its name.
        node: of a backward operation, the autograd node that ran it, e.g. ``LogBackward0``.
        source: of a backward operation, the forward operation that it differentiates.
        module: path of the innermost module, ``(network)`` for the network itself, empty outside it.
        place: the line of the forward operation, also of a backward one; a backward function written in Python
            has its own.
        scalars: arguments that are plain numbers, by name.
        innocent: it holds nothing but infinities that were asked for.
        samples: indices along the leading dimension of the batch where the output is not finite.
    """

    index: int
    kind: Kind
    name: str
    direction: Direction = "forward"
    node: str = ""
    source: str = ""
    module: str = ""
    place: Place | None = None
    inputs: tuple[TensorFacts, ...] = ()
    outputs: tuple[TensorFacts, ...] = ()
    scalars: dict[str, float] = field(default_factory=dict)
    parents: tuple[Operation, ...] = ()
    innocent: bool = False
    samples: tuple[int, ...] = ()

    @property
    def family(self) -> str:
        """``log`` of ``aten.log_.default``: without overload and the underscore of the in-place form."""
        return family_of(self.name)

    @property
    def source_family(self) -> str:
        """The family of the operation as the user wrote it: of a backward one, that which it differentiates."""
        return family_of(self.source) if self.source else self.family

    @property
    def is_times_zero(self) -> bool:
        """A product with the plain number 0, which makes NaN of an infinity: a loss term of weight 0."""
        return self.family == "mul" and self.scalars.get("other") == 0.0

    def as_json(self) -> dict[str, Any]:
        """For programs; without parents."""
        return {
            "operation": self.name,
            "kind": self.kind,
            "direction": self.direction,
            "node": self.node or None,
            "source_operation": self.source or None,
            "module": self.module or None,
            "place": str(self.place) if self.place else None,
            "text": self.place.text if self.place else None,
            "inputs": [vars(facts) | {"shape": list(facts.shape)} for facts in self.inputs],
            "outputs": [vars(facts) | {"shape": list(facts.shape)} for facts in self.outputs],
            "scalars": {name: value if math.isfinite(value) else str(value) for name, value in self.scalars.items()},
            "samples": list(self.samples),
        }


def family_of(name: str) -> str:
    """``log`` of ``aten.log_.default``."""
    parts = name.split(".")
    family = parts[1] if len(parts) > 1 else parts[0]
    return family if family.startswith("_") else family.rstrip("_")


def facts_of(name: str, tensor: Tensor) -> TensorFacts:
    """Measure a tensor; waits for the device."""
    values = values_of(tensor.detach())
    shape, dtype = tuple(tensor.shape), str(tensor.dtype).removeprefix("torch.")
    if values.is_complex():
        values = torch.view_as_real(values)
    if values.dtype == torch.bool or not values.numel():
        return TensorFacts(name, shape, dtype, None, None, None, None, 0)
    values = values.double()
    finite = values[values.isfinite()]
    num_nonfinite = values.numel() - finite.numel()
    if not finite.numel():
        return TensorFacts(name, shape, dtype, None, None, None, None, num_nonfinite)
    magnitude = finite.abs()
    extremes = torch.stack([finite.min(), finite.max(), magnitude.min(), magnitude.max()])
    low, high, near, far = extremes.tolist()
    return TensorFacts(name, shape, dtype, low, high, near, far, num_nonfinite)


def place_here(*, in_backward: bool) -> Place | None:
    """The innermost line of the caller that is neither torch's nor this tracer's.

    In a backward pass only lines inside it count, i.e. those of a backward function written in Python.
    """
    for frame in _outwards(sys._getframe(1)):
        file = frame.f_code.co_filename
        if in_backward and file.startswith(_TORCH) and frame.f_code.co_name == "_engine_run_backward":
            return None
        if file.startswith((_TORCH, "<frozen")) or file in _OWN:
            continue
        return Place(file, frame.f_lineno, linecache.getline(file, frame.f_lineno).strip())
    return None


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back
