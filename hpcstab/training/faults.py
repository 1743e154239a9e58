"""Faults that a config declares, put into the batch of their step: what a training does when the data are bad."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import torch

from hpcstab.config.common import DataFault
from hpcstab.errors import ConfigError
from hpcstab.task import Batch

_VALUES: Mapping[str, float] = {"inf_pixel": math.inf, "nan_pixel": math.nan}


def with_fault(batch: Batch, fault: DataFault) -> Batch:
    """The batch with one bad element, in the middle of its first sample: of the first floating-point tensor in it.

    Raises:
        ConfigError: there is no such tensor.
    """
    changed, is_done = _changed(batch, _VALUES[fault.kind])
    if not is_done:
        raise ConfigError(f"data.faults: the batch of step {fault.step} has no floating-point tensor to put a fault in")
    return changed


def _changed(batch: Batch, value: float) -> tuple[Batch, bool]:
    if isinstance(batch, torch.Tensor):
        if not batch.is_floating_point() or not batch.numel():
            return batch, False
        batch = batch.clone(memory_format=torch.contiguous_format)
        first_sample = batch[0].view(-1)
        first_sample[len(first_sample) // 2] = value
        return batch, True
    if isinstance(batch, Mapping):
        values, is_done = _changed(list(batch.values()), value)
        return dict(zip(batch, values, strict=True)), is_done
    if isinstance(batch, Sequence) and not isinstance(batch, str):
        parts, is_done = list(batch), False
        for index, part in enumerate(parts):
            parts[index], is_done = _changed(part, value)
            if is_done:
                break
        return type(batch)(parts), is_done  # type: ignore[call-arg]
    return batch, False
