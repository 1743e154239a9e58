"""Configs and tasks of liquidreg for tests."""

from __future__ import annotations

import torch
from torch import Tensor

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.models.liquidreg.config import Config
from hpcstab.models.liquidreg.task import Task
from hpcstab.training.context import TrainingContext

CONTEXT = TrainingContext(seed=0, step=0, epoch=0, device=torch.device("cpu"))


def make_config(variant: str = "before", scale: str = "tiny", *settings: str) -> Config:
    config = resolve(load_experiment("liquidreg"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return config


def held_out(task: Task) -> dict[str, Tensor]:
    """All held-out pairs as one batch."""
    validation = task.dataset("validation")
    batch: dict[str, Tensor] = torch.utils.data.default_collate([validation[i] for i in range(len(validation))])
    return batch
