"""The user's torch.amp.GradScaler as the gate's loss scale: its own tensors, without its decisions."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from hpcstab.errors import ConfigError
from hpcstab.stability.gate.loss_scale import LossScale


def scale_of(scaler: torch.amp.GradScaler | None, device: torch.device) -> LossScale | None:
    """A loss scale that is the scaler's: it multiplies with what the gate decides, and saves it in its state_dict.

    None where there is no scaler or it is switched off.

    Raises:
        ConfigError: it is no GradScaler of this torch.
    """
    if scaler is None or not getattr(scaler, "is_enabled", lambda: True)():
        return None
    if not isinstance(scaler, torch.amp.GradScaler):
        raise ConfigError(f"got a {type(scaler).__name__} as scaler; give a torch.amp.GradScaler, or None")
    scaler.scale(torch.ones((), device=device))  # makes its tensors
    scale = LossScale(
        1.0,
        scaler.get_growth_interval(),
        device,
        growth_factor=scaler.get_growth_factor(),
        backoff_factor=scaler.get_backoff_factor(),
    )
    value, num_applied = scaler._scale, scaler._growth_tracker
    assert value is not None and num_applied is not None, "scale() has made them"
    scale.value, scale.num_applied = value, num_applied
    return scale


def check_untouched(scaler: torch.amp.GradScaler | None, optimizers: Sequence[torch.optim.Optimizer]) -> None:
    """Refuse gradients that the scaler has divided already: the gate does it, and would do it twice.

    Raises:
        ConfigError: ``unscale_`` or ``step`` of the scaler was called.
    """
    stages = {} if scaler is None else scaler._per_optimizer_states
    for optimizer in optimizers:
        state = stages.get(id(optimizer))
        if state is not None and state["stage"].name != "READY":
            raise ConfigError(
                "scaler.unscale_() or scaler.step() was called: leave them and scaler.update() out, and give"
                " max_grad_norm to harden(); hardened.step(loss) does all of it"
            )
