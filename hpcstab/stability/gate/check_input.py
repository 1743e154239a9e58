"""What a gate can work with: a model, its optimizers, a loss. Everything else is an error that teaches."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from hpcstab.errors import ConfigError
from hpcstab.stability.gate.clipping import total_norm


def checked_parameters(network: nn.Module) -> list[nn.Parameter]:
    """All parameters of a network, frozen ones too: they may be thawed later.

    Raises:
        ConfigError: none to train, more than one device, or only a part of each is here.
    """
    parameters = list(network.parameters())
    if not any(parameter.requires_grad for parameter in parameters):
        raise ConfigError(f"{type(network).__name__} has no parameters that require a gradient: nothing to train")
    devices = sorted({str(parameter.device) for parameter in parameters})
    if len(devices) > 1:
        raise ConfigError(f"the model lies on {', '.join(devices)}; one decision is made on one device: put it on one")
    if any(hasattr(parameter, "placements") for parameter in parameters):
        raise ConfigError("the model is sharded (FSDP, tensor parallel); only whole models are gated: use DDP")
    return parameters


def check_stepped(optimizers: Sequence[torch.optim.Optimizer], parameters: Sequence[Tensor]) -> None:
    """Refuse optimizers that step what is not measured: a NaN in there would get through.

    Raises:
        ConfigError: says how many of an optimizer's parameters are not the model's.
    """
    known = {id(parameter) for parameter in parameters}
    for optimizer in optimizers:
        stepped = [parameter for group in optimizer.param_groups for parameter in group["params"]]
        foreign = sum(id(parameter) not in known for parameter in stepped)
        if foreign:
            raise ConfigError(
                f"{type(optimizer).__name__} steps {foreign} of {len(stepped)} parameter tensors that are not the"
                " model's: give all models, e.g. nn.ModuleList([generator, critic])"
            )


def num_stepped(optimizers: Sequence[torch.optim.Optimizer]) -> int:
    """How many parameter tensors the optimizers step."""
    return sum(len(group["params"]) for optimizer in optimizers for group in optimizer.param_groups)


def check_loss(loss: Any, gradients: Sequence[Tensor]) -> None:
    """Refuse what is no loss, or has not reached the parameters.

    Raises:
        ConfigError: no tensor, no scalar, or no gradient anywhere.
    """
    if not isinstance(loss, Tensor):
        raise ConfigError(
            f"the loss is a {type(loss).__name__}; give the 0-d tensor itself: .item() would wait for the device"
        )
    if loss.ndim != 0:
        raise ConfigError(f"the loss has shape {tuple(loss.shape)}; it must be a scalar: reduce it, e.g. loss.mean()")
    if not gradients:
        raise ConfigError(
            "no parameter has a gradient: call loss.backward() first; if you did, the loss does not depend on them"
        )


def norm_of(gradients: list[Tensor]) -> Tensor:
    """Their norm, in fp32, which the kernels of optimizers read whatever the gradients are.

    Raises:
        ConfigError: one is sparse.
    """
    try:
        return total_norm(gradients).float()
    except (RuntimeError, NotImplementedError):
        if any(gradient.is_sparse for gradient in gradients):
            raise ConfigError(
                "a gradient is sparse, which has no norm in torch: use nn.Embedding(..., sparse=False)"
            ) from None
        raise


def can_skip_itself(optimizer: torch.optim.Optimizer) -> bool:
    """Whether the optimizer skips a step on the device; makes ready one that can.

    Raises:
        ConfigError: it is no optimizer, or one whose step cannot be decided from outside.
    """
    if not isinstance(optimizer, torch.optim.Optimizer):
        raise ConfigError(
            f"got a {type(optimizer).__name__} as optimizer; the gate steps torch.optim.Optimizer objects"
        )
    if isinstance(optimizer, torch.optim.LBFGS):
        raise ConfigError("LBFGS evaluates the loss inside its step, where the gate cannot look; use a first-order one")
    if not all(group.get("fused") for group in optimizer.param_groups):
        return False
    if not type(optimizer).step.__module__.startswith("torch.optim."):
        return False  # a class derived from a fused one, with a step of its own that knows nothing of found_inf
    if isinstance(optimizer, torch.optim.SGD):
        return _prepare_momentum(optimizer)
    return bool(getattr(optimizer, "_step_supports_amp_scaling", False))


def _prepare_momentum(optimizer: torch.optim.SGD) -> bool:
    """Give each parameter a momentum buffer of zeros, from which the first update is the same.

    Without it torch allocates the buffers in the first step and fills them only where that step is applied: a first
    step that is skipped leaves whatever was in memory (measured: wrong weights in 199 of 200 trials).
    """
    for group in optimizer.param_groups:
        if group["momentum"] and group["dampening"]:
            return False  # its first update is undamped, which a buffer of zeros is not
        for parameter in group["params"] if group["momentum"] else ():
            if optimizer.state[parameter].get("momentum_buffer") is None:
                optimizer.state[parameter]["momentum_buffer"] = torch.zeros_like(parameter)
    return True
