"""What a step and a state look like: norms, finiteness. Everything stays on the device until it is read."""

from __future__ import annotations

import resource
from collections.abc import Iterable

import torch
from torch import Tensor, nn
from torch.nn.utils import get_total_norm


def total_grad_norm(parameters: Iterable[nn.Parameter]) -> Tensor:
    """L2 norm over all gradients; NaN or inf where one of them is."""
    return get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])


def clip_scale(grad_norm: Tensor, max_norm: float | None) -> Tensor:
    """Factor that brings the norm down to ``max_norm``: 1 where it is below, NaN where the norm is."""
    if max_norm is None:
        return torch.ones_like(grad_norm)
    return torch.clamp(max_norm / (grad_norm + 1e-6), max=1.0)


def scale_gradients(parameters: Iterable[nn.Parameter], scale: Tensor) -> None:
    """Multiply all gradients in place."""
    torch._foreach_mul_([parameter.grad for parameter in parameters if parameter.grad is not None], scale)


def nonfinite_names(tensors: Iterable[tuple[str, Tensor]]) -> list[str]:
    """Names of floating-point tensors that hold a NaN or an infinity; one read from the device in all."""
    named = [(name, tensor) for name, tensor in tensors if tensor.is_floating_point()]
    if not named:
        return []
    flags = torch.stack([tensor.isfinite().all() for _, tensor in named]).tolist()
    return [name for (name, _), finite in zip(named, flags, strict=True) if not finite]


def peak_memory_gib(device: torch.device) -> float:
    """CUDA: peak allocated on the device; CPU: peak resident set of this process."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device) / 2**30
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


class ModuleProbe:
    """Gradient and update norm of every module that owns parameters, around one optimizer step."""

    def __init__(self, network: nn.Module) -> None:
        self._owned = {
            name or "(network)": parameters
            for name, module in network.named_modules()
            if (parameters := [p for p in module.parameters(recurse=False) if p.requires_grad])
        }
        self._grad_norms: dict[str, Tensor] = {}
        self._before: dict[str, list[Tensor]] = {}

    def before_step(self) -> None:
        """Keep the parameters, and the norms of the gradients as backward left them."""
        for name, parameters in self._owned.items():
            self._grad_norms[name] = total_grad_norm(parameters)
            self._before[name] = [parameter.detach().clone() for parameter in parameters]

    def after_step(self) -> list[tuple[str, float, float]]:
        """(module, gradient norm, update norm); a module without any gradient has norm 0."""
        rows = []
        for name, parameters in self._owned.items():
            changes = [p.detach() - b for p, b in zip(parameters, self._before[name], strict=True)]
            rows.append((name, float(self._grad_norms[name]), float(get_total_norm(changes))))
        self._before.clear()
        return rows
