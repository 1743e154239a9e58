"""Tasks, batches and contexts for the tests of xray2ctpa."""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.models.xray2ctpa.config import Config
from hpcstab.models.xray2ctpa.network import LatentDiffusion
from hpcstab.models.xray2ctpa.task import Task
from hpcstab.training.context import TrainingContext

CPU = torch.device("cpu")


def make_config(variant: str = "before", scale: str = "tiny", *settings: str) -> Config:
    config = resolve(load_experiment("xray2ctpa"), variant, scale, parse_overrides(list(settings))).config
    assert isinstance(config, Config)
    return config


@functools.cache
def make_task(variant: str = "before", *settings: str) -> Task:
    """A task at scale tiny; its data and autoencoder are made once."""
    return Task(make_config(variant, "tiny", *settings), 0)


def make_network(task: Task) -> LatentDiffusion:
    torch.manual_seed(0)
    network = task.network()
    assert isinstance(network, LatentDiffusion)
    return network


def make_context(step: int = 0, epoch: int = 0, seed: int = 0) -> TrainingContext:
    return TrainingContext(seed, step, epoch, CPU)


def training_batch(task: Task, *numbers: int) -> dict[str, Tensor]:
    items = task.dataset("train")
    batch: dict[str, Tensor] = torch.utils.data.default_collate([items[number] for number in numbers])
    return batch


def validation_batch(task: Task) -> dict[str, Tensor]:
    items = task.dataset("validation")
    batch: dict[str, Tensor] = torch.utils.data.default_collate([items[index] for index in range(len(items))])
    return batch
