"""One training for all cells: its config, the step of the fault, and what of the state a fault hits."""

from __future__ import annotations

import copy
import math
from typing import Any

from torch import Tensor

from hpcstab.config.guards import DEFAULT
from tests.faults.cells import Cell
from tests.training.toy import Config, toy_config

NUM_STEPS = 15
FAULT_STEP = 8
HEALTH_EVERY = 4
CHECKPOINT_EVERY = 6
LOSS_SCALE = 1024.0
OVERGROWN_SCALE = 2.0**24
"""Gradients of this training overflow fp16 by it."""
_WINDOW = {"window": 4, "min_updates": 3, "refresh_every": 1}  # the real thresholds, known after a few steps


def config_of(cell: Cell) -> Config:
    """All that hpcstab has is on; windows and cadences are those of a training of 15 steps.

    The state is looked at after step 11, as late as the cadence can after a fault before step 8, and is kept before
    steps 0, 6 and 12.
    """
    guards: dict[str, Any] = copy.deepcopy(DEFAULT)
    guards["loss_spike"] |= _WINDOW
    guards["norm_spike"] |= _WINDOW
    return toy_config(
        losses={"weights": {"mse": 1.0, "size": 0.1}},
        optimizer={"name": cell.optimizer, "momentum": 0.9},
        precision={"dtype": cell.precision, "loss_scale": _loss_scale(cell)},
        stability={"gate": "closed", "guards": guards, "health_every": {"steps": HEALTH_EVERY}},
        trainer={
            "max_steps": NUM_STEPS,
            "ema_decay": 0.9,
            "checkpoint_every": {"steps": CHECKPOINT_EVERY},
            "evaluate_every": {"steps": 100},
        },
    )


def _loss_scale(cell: Cell) -> dict[str, float] | None:
    return {"initial": LOSS_SCALE, "growth_every": 10000} if cell.precision == "fp16" else None


def name_of_state(cell: Cell) -> str | None:
    """The tensor that a fault of the state hits; None where the fault is none.

    Inf goes where it is silent: an infinite variance makes outputs 0, an infinite second moment stops a weight.
    """
    if cell.site == "bn_buffer":
        return f"norm.running_{'mean' if cell.kind == 'nan' else 'var'}"
    if cell.site == "optimizer_moment":
        moment = "exp_avg" if cell.kind == "nan" else "exp_avg_sq"
        return f"optimizer.encoder.weight.{'momentum_buffer' if cell.optimizer == 'sgd' else moment}"
    return "ema.encoder.weight" if cell.site == "ema" else None


def damage(tensor: Tensor, cell: Cell) -> None:
    """One number of it is what the cell says."""
    tensor.view(-1)[0] = {"nan": math.nan, "inf": math.inf}[cell.kind]


def is_of_the_scale(cell: Cell) -> bool:
    """Whether the fault is a loss scale that has grown too far: neither batch nor state are to blame."""
    return (cell.kind, cell.site) == ("fp16_overflow", "gradient")


def ranks_of_fault(cell: Cell) -> tuple[int, ...]:
    """On which ranks it happens: the last alone, but the scale is one for all, and buffers are those of rank 0."""
    if is_of_the_scale(cell):
        return tuple(range(cell.ranks))
    return (0,) if cell.site == "bn_buffer" else (cell.ranks - 1,)
