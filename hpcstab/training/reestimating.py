"""Running statistics for a checkpoint whose own are lost, from batches of its training."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from hpcstab.config import RunConfig
from hpcstab.errors import CheckpointError
from hpcstab.seeds import keyed_seed
from hpcstab.stability.batchnorm.layers import norm_layers
from hpcstab.stability.batchnorm.reestimate import reestimate
from hpcstab.stability.random_state import random_state_kept, seed_all
from hpcstab.task import Task
from hpcstab.training.batches import StepBatch, TrainingBatches, micro_batches, to_device
from hpcstab.training.build import build_network
from hpcstab.training.context import TrainingContext
from hpcstab.training.precision import autocast, pick_device, set_tf32


def reestimate_statistics(
    task: Task, config: RunConfig, seed: int, state: Mapping[str, Tensor], step: int, layers: Sequence[str]
) -> dict[str, tuple[Tensor, Tensor]]:
    """Mean and variance of each of ``layers`` over the last ``reestimate_batches`` clean batches before ``step``.

    A batch that carries a declared fault is left out, and a pass that is not finite does not count for the layers
    that saw it. The generators are put back.

    Args:
        state: of the network; finite.
        layers: names of normalisation layers of the network.

    Returns:
        (mean, variance) by layer, on the CPU; a layer without a clean pass is left out.

    Raises:
        CheckpointError: the state does not fit the network that the task builds.
    """
    device = pick_device()
    set_tf32(config.precision)
    with random_state_kept():
        network = build_network(task, config, seed, device)
        try:
            network.load_state_dict(state)
        except RuntimeError as error:
            reason = str(error).splitlines()[0]
            raise CheckpointError(f"its state does not fit the network that the task builds: {reason}") from None
        by_name = {name: layer for name, layer in norm_layers(network) if name in layers}
        num_batches = config.stability.batchnorm.reestimate_batches
        batches = itertools.islice(_clean_batches(task, config, seed, step, num_batches), num_batches)

        def forward(item: StepBatch) -> None:
            seed_all(keyed_seed(seed, "step", item.step))
            for index, part in enumerate(micro_batches(item.batch, config.trainer.micro_batches)):
                context = TrainingContext(seed, item.step, item.epoch, device, index)
                with autocast(config.precision, device):
                    task.loss_terms(network, to_device(part, device), context)

        clean = reestimate(network, by_name, batches, forward)
    return {name: _statistics(by_name[name]) for name, count in clean.items() if count}


def _clean_batches(task: Task, config: RunConfig, seed: int, step: int, num_batches: int) -> Iterator[StepBatch]:
    """Those that were trained on last come first; where there were too few, those that would come next."""
    faulty = {fault.step for fault in config.data.faults}
    first = max(0, step - num_batches - len(faulty))
    batches = TrainingBatches(task.dataset("train"), config.data, seed)
    return (item for item in batches.from_step(first) if item.step not in faulty)


def _statistics(layer: torch.nn.Module) -> tuple[Tensor, Tensor]:
    mean, variance = layer.running_mean, layer.running_var
    assert isinstance(mean, Tensor)
    assert isinstance(variance, Tensor)
    return mean.cpu().clone(), variance.cpu().clone()
