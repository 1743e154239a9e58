"""The capsule of a loop that is not ours: replayed with the model and the loss function that only its user has.

state: ``network`` (state dict of the model; of several, of an nn.ModuleList of them), ``buffers`` (all, those too that
no state dict holds), ``optimizer`` (state dict; of several, a dict of them by index), ``batch`` (plain containers;
where gradients accumulate, a list of ``num_batches``), ``random``. facts: ``origin`` is ``harden``; there is no model,
config or seed. :func:`hpcstab.stability.loop.replay.replay` runs it again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from hpcstab.errors import CheckpointError
from hpcstab.stability.loop.turns import Figures, Turn
from hpcstab.stability.random_state import take_random_state
from hpcstab.stability.replay.capsule import MAX_CAPSULES, write_capsule


def write_loop_capsule(
    folder: Path,
    network: nn.Module,
    optimizers: Sequence[torch.optim.Optimizer],
    turn: Turn,
    figures: Figures,
    facts: Mapping[str, Any],
) -> Path:
    """Write what replays ``turn``, once the state is that before it. The generators are left as before its body.

    Raises:
        CheckpointError: it cannot be written, or there are enough.
    """
    if len(list(folder.parent.glob("step_*"))) >= MAX_CAPSULES:
        raise CheckpointError(f"{folder.parent} has {MAX_CAPSULES} capsules already; move them away for more")
    turn.put_random()
    batches = [plain(given.batch) for given in turn.given]
    states = [optimizer.state_dict() for optimizer in optimizers]
    state = {
        "network": network.state_dict(),
        "buffers": dict(network.named_buffers()),
        "optimizer": states[0] if len(states) == 1 else dict(enumerate(states)),
        "batch": batches[0] if len(batches) == 1 else batches,
        "random": take_random_state(),
    }
    known = {
        "origin": "harden",
        "step": turn.step,
        "epoch": None,
        "ids": [],
        "figures": {name: repr(getattr(figures, name)) for name in ("loss", "grad_norm", "clip_scale")},
        "lr": float(optimizers[0].param_groups[0]["lr"]),
        "num_batches": len(batches),
        "num_optimizers": len(optimizers),
    }
    return write_capsule(folder, state, {**known, **facts})


def plain(value: Any) -> Any:
    """A batch as tensors and plain containers, which a capsule can hold; what it cannot is there as its repr.

    NumPy arrays become tensors, named tuples tuples, dataclasses and mappings dicts.
    """
    if value is None or isinstance(value, Tensor | bool | int | float | str):
        return value
    if isinstance(value, Mapping):
        return {key if isinstance(key, str | int) else repr(key): plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        items = [plain(item) for item in value]
        return tuple(items) if isinstance(value, tuple) else items
    if hasattr(value, "__dataclass_fields__"):
        return {name: plain(getattr(value, name)) for name in value.__dataclass_fields__}
    return _tensor(value) if hasattr(value, "__array__") else repr(value)


def _tensor(array: Any) -> Any:
    try:
        return torch.from_numpy(np.array(array))
    except (TypeError, ValueError, RuntimeError):
        return repr(array)  # an array of text and the like
