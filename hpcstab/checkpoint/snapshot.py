"""A copy of a training's state in host memory: the training goes on with the original while the copy is written."""

from __future__ import annotations

import copy
from collections.abc import Callable, Hashable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcstab.errors import CheckpointError


class Snapshot:
    """Copies states of one training, again and again into the same memory: as much of it as the state is large.

    A copy is gone when the next one is taken. From a GPU it is made in page-locked memory, in the order of the device's
    own work: the host does not wait for it, and no later step can change what is copied.
    """

    def __init__(self) -> None:
        self._buffers: dict[str, tuple[Hashable, Tensor]] = {}

    def take(self, state: Mapping[str, Any]) -> Callable[[], dict[str, Any]]:
        """Copy ``state`` (mappings, lists and tuples of tensors and plain values); tensors that share memory still do.

        Returns:
            What gives the copy, and waits for the device where it is not made yet; from any thread.

        Raises:
            CheckpointError: the state holds something that could not be loaded again.
        """
        twins: dict[Hashable, Tensor] = {}
        devices: set[torch.device] = set()
        copied: dict[str, Any] = self._copied(dict(state), "state", twins, devices)
        done = [torch.cuda.current_stream(device).record_event() for device in devices]

        def wait() -> dict[str, Any]:
            for event in done:
                event.synchronize()
            return copied

        return wait

    def _copied(self, value: Any, path: str, twins: dict[Hashable, Tensor], devices: set[torch.device]) -> Any:
        if isinstance(value, Tensor):
            if value.is_cuda:
                devices.add(value.device)
            return self._tensor(value.detach(), path, twins)
        if isinstance(value, dict):
            twin = copy.copy(value)  # which keeps the versions of modules that a state_dict has as an attribute
            for key, entry in value.items():
                twin[key] = self._copied(entry, f"{path}.{key}", twins, devices)
            return twin
        if isinstance(value, (list, tuple)):
            entries = enumerate(value)
            return type(value)(self._copied(entry, f"{path}.{index}", twins, devices) for index, entry in entries)
        if isinstance(value, float):
            return float(value)  # one of NumPy's own would not be loaded again
        if value is None or isinstance(value, (bool, int, complex, str, bytes)):
            return value
        raise CheckpointError(
            f"{path} is a {type(value).__qualname__}: a checkpoint holds tensors and plain values, since loading it "
            "must never run code; make it one of them in the module's get_extra_state"
        )

    @torch.no_grad()
    def _tensor(self, tensor: Tensor, path: str, twins: dict[Hashable, Tensor]) -> Tensor:
        form = (tensor.shape, tensor.stride(), tensor.dtype, tensor.device)
        memory = (tensor.untyped_storage().data_ptr(), tensor.storage_offset(), *form)
        if memory not in twins:
            known, buffer = self._buffers.get(path, (None, tensor))
            if known != form:
                buffer = torch.empty_like(tensor, device="cpu", pin_memory=tensor.is_cuda)
                self._buffers[path] = form, buffer
            twins[memory] = buffer.copy_(tensor, non_blocking=True)
        return twins[memory]
