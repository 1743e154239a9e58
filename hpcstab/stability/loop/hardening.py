"""The gate for any PyTorch loop: three lines, no run folder, no config.

    hardened = harden(model, optimizer, max_grad_norm=1.0, capsules="capsules")
    for batch in hardened.batches(loader):
        loss = compute(model, batch)
        loss.backward()
        hardened.step(loss)
        optimizer.zero_grad()

A step whose loss, gradients or buffers are not finite changes nothing. The host learns of it two steps later, since
a healthy step waits for nobody; ``batches`` then gives that batch and those behind it again, with every random
generator as it was. A batch that fails twice is left out, and the result is bitwise that of a loop that never saw it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_args

import torch
from torch import nn

from hpcstab.errors import ConfigError, NumericsError
from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.ema import Ema
from hpcstab.stability.gate.gate import Gate, GateMode
from hpcstab.stability.gate.ranks import agreement
from hpcstab.stability.loop.grad_scaler import scale_of
from hpcstab.stability.loop.hardened import Hardened as Hardened
from hpcstab.stability.unwrap import one_network


def harden(  # noqa: PLR0913 - each option is one thing that a step changes or obeys
    model: nn.Module | Sequence[nn.Module],
    optimizer: torch.optim.Optimizer | Sequence[torch.optim.Optimizer],
    *,
    max_grad_norm: float | None = None,
    capsules: str | Path | None = None,
    mode: GateMode = "closed",
    scaler: torch.amp.GradScaler | None = None,
    scheduler: Any = None,
    ema_decay: float | None = None,
    max_refused_in_a_row: int = 10,
) -> Hardened:
    """Put the gate into a loop. Move the model to its device, wrap it in DDP and load its weights before.

    Args:
        model: one or several that are trained together.
        optimizer: one or several, stepped together: one decision for all. Fused ones (``fused=True``) skip on the
            device; for others the host waits for the decision in every step, with the same result.
            Those that your loop steps one after the other within a batch: compute both losses first.
        max_grad_norm: gradients are clipped to it; leave out your own clipping.
        capsules: a folder for what replays a refused step (``hpcstab.replay``); None writes none.
        mode: ``closed`` lets nothing of a bad step stay; ``step_only`` skips the optimizer alone, as GradScaler does;
            ``open`` applies everything. These two only keep a capsule of the first bad step.
        scaler: your GradScaler: go on calling ``scaler.scale(loss).backward()``, leave out its other methods.
        scheduler: one or several that tick by update: ``step`` calls them, and takes the tick back with the update.
            Those that tick by epoch stay where they are, outside of ``batches``.
        ema_decay: keep a moving average of the parameters, as ``hardened.ema``.
        max_refused_in_a_row: after so many batches that were left out in a row the loop ends with an error.

    Raises:
        ConfigError: what was given cannot be gated; says why and what to do.
        NumericsError: the model is not finite to begin with.
    """
    network = one_network(model)
    optimizers = [optimizer] if not isinstance(optimizer, Sequence) else list(optimizer)
    if mode not in get_args(GateMode):
        raise ConfigError(f"mode '{mode}' is none of {', '.join(get_args(GateMode))}")
    if max_grad_norm is not None and not max_grad_norm > 0:
        raise ConfigError(f"max_grad_norm is {max_grad_norm}; it must be above 0, or None to clip nothing")
    if scaler is not None and mode == "open":
        raise ConfigError("mode 'open' applies every update, and a loss scale that overflows must skip one: step_only")
    device = next((parameter.device for parameter in network.parameters()), torch.device("cpu"))
    gate = Gate(
        network,
        optimizers,
        mode,
        max_grad_norm,
        loss_scale=scale_of(scaler, device),
        ema=Ema(network, ema_decay) if ema_decay is not None else None,
        agree=agreement(),
    )
    sick = nonfinite_names(network.named_parameters())
    if sick:
        raise NumericsError(f"{len(sick)} parameter tensors are not finite already, first {sick[0]}: load sound ones")
    schedulers = [] if scheduler is None else list(scheduler) if isinstance(scheduler, Sequence) else [scheduler]
    folder = Path(capsules) if capsules is not None else None
    return Hardened(network, optimizers, gate, schedulers, scaler, folder, max_refused_in_a_row)
