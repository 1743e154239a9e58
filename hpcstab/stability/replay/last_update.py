"""The last update of the parameters, recomputed from the state that it left in the optimizer.

Adam and AdamW keep both moments, SGD with momentum its buffer: what was added to a parameter follows from them.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor

from hpcstab.errors import CheckpointError


@torch.no_grad()
def take_back(
    optimizers: torch.optim.Optimizer | Iterable[torch.optim.Optimizer], share: float, lr: float | None = None
) -> None:
    """Take back a share of the last update: 1 undoes it, 0.5 is what half the learning rate would have done.

    Args:
        optimizers: one or several, with the state after that update; their parameters are changed in place.
        share: above 0, at most 1.
        lr: the learning rate of that update, of the first parameter group; others had theirs in the same ratio to it as
            now. None for the present one of each group.

    Raises:
        CheckpointError: no update was applied, or this optimizer keeps too little to know it.
    """
    moved = False
    members = [optimizers] if isinstance(optimizers, torch.optim.Optimizer) else list(optimizers)
    first_lr = members[0].param_groups[0]["lr"]
    for optimizer, group in ((member, group) for member in members for group in member.param_groups):
        rate = group["lr"] if lr is None else lr * (group["lr"] / first_lr)
        for parameter in group["params"]:
            state = optimizer.state.get(parameter)
            if parameter.requires_grad and state:
                before = _before(optimizer, parameter, state, group, rate)
                moved = moved or not torch.equal(before, parameter)
                parameter.lerp_(before, share)
    if not moved:
        raise CheckpointError("the optimizer's state knows of no update")


def _before(
    optimizer: torch.optim.Optimizer, parameter: Tensor, state: Mapping[str, Any], group: Mapping[str, Any], lr: float
) -> Tensor:
    """The parameter before the update."""
    if isinstance(optimizer, (torch.optim.Adam, torch.optim.AdamW)) and not group["amsgrad"]:
        beta1, beta2 = group["betas"]
        count = float(state["step"])
        if count < 1:
            return parameter.clone()
        mean = state["exp_avg"] / (1 - beta1**count)
        root = (state["exp_avg_sq"] / (1 - beta2**count)).sqrt() + group["eps"]
        after_decay: Tensor = parameter + lr * mean / root * (-1 if group["maximize"] else 1)
        decays = isinstance(optimizer, torch.optim.AdamW) or group.get("decoupled_weight_decay", False)
        return after_decay / (1 - lr * group["weight_decay"]) if decays else after_decay
    if isinstance(optimizer, torch.optim.SGD) and state.get("momentum_buffer") is not None and not group["nesterov"]:
        moved: Tensor = lr * state["momentum_buffer"] * (-1 if group["maximize"] else 1)
        return parameter + moved
    raise CheckpointError(f"the last update of this {type(optimizer).__name__} does not follow from its state")
