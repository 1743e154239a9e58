"""What a step and a state look like: norms, finiteness. Everything stays on the device until it is read."""

from __future__ import annotations

import resource
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm

from hpcstab.stability.deferred import Deferred
from hpcstab.stability.gate.clipping import total_grad_norm


def finite_flag(tensors: Mapping[str, Tensor]) -> Tensor:
    """Whether all values of all tensors are finite: a 0-d boolean tensor on their device."""
    largest = torch._foreach_norm(list(tensors.values()), float("inf"))
    return torch.stack([value.float() for value in largest]).isfinite().all()


def peak_memory_gib(device: torch.device) -> float:
    """CUDA: peak allocated on the device; CPU: peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


@dataclass(frozen=True)
class ModuleNorms:
    """Gradient and update norm of each module, on their way from the device."""

    modules: tuple[str, ...]
    deferred: Deferred

    def read(self) -> list[tuple[str, float, float]]:
        """(module, gradient norm, update norm); a module without any gradient has norm 0."""
        norms = self.deferred.read()
        count = len(self.modules)
        return list(zip(self.modules, norms[:count], norms[count:], strict=True))


class ModuleProbe:
    """Measures every module that owns parameters around one optimizer step; made after the backward pass."""

    def __init__(self, network: nn.Module, loss_scale: Tensor | None = None) -> None:
        self._owned = {
            name or "(network)": parameters
            for name, module in network.named_modules()
            if (parameters := [p for p in module.parameters(recurse=False) if p.requires_grad])
        }
        scaled = [total_grad_norm(parameters) for parameters in self._owned.values()]
        self._grad_norms = scaled if loss_scale is None else [norm / loss_scale for norm in scaled]
        self._before = [[parameter.detach().clone() for parameter in owned] for owned in self._owned.values()]

    def after_step(self) -> ModuleNorms:
        """The norms, to be read later."""
        updates = [
            get_total_norm([after.detach() - before for after, before in zip(owned, befores, strict=True)])
            for owned, befores in zip(self._owned.values(), self._before, strict=True)
        ]
        norms = torch.stack([norm.double() for norm in (*self._grad_norms, *updates)])
        return ModuleNorms(tuple(self._owned), Deferred(norms))
