"""What a training without the fault ends with: a plain PyTorch loop, written without anything of hpcstab's trainer."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from hpcstab.seeds import keyed_seed
from hpcstab.training.precision import pick_device
from tests.faults.task import FaultNetwork, FaultTask, batch_indices
from tests.training.toy import Config

_DTYPES = {"bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass
class Ended:
    """The state at the end of a training."""

    network: dict[str, Tensor]
    optimizer: dict[Any, dict[str, Tensor]]
    average: list[Tensor]
    loss_scale: float | None


def train_plainly(
    config: Config, ranks: int, *, without: int | None = None, overgrown: tuple[int, float] | None = None
) -> Ended:
    """Train without the batch of step ``without``.

    ``overgrown``: (step, loss scale); the scale is this large there, and is halved until no gradient overflows.
    Several ranks are played one after the other: gradients averaged, buffers those of rank 0.
    """
    task = FaultTask(config)
    torch.manual_seed(keyed_seed(0, "network"))
    network = FaultNetwork().to(pick_device())
    optimizer = make_optimizer(network, config)
    averages = [parameter.detach().clone() for parameter in network.parameters()]
    scale = config.precision.loss_scale.initial if config.precision.loss_scale else None
    assert config.trainer.max_steps is not None
    for step in range(config.trainer.max_steps):
        if step == without:
            continue
        if overgrown and step == overgrown[0]:
            scale = overgrown[1]
        scale = _set_gradients(network, task, config, step, ranks, scale)
        if scale is not None:
            optimizer.grad_scale = torch.tensor(scale, device=pick_device())  # type: ignore[attr-defined]
        optimizer.step()
        for average, parameter in zip(averages, network.parameters(), strict=True):
            average.add_((parameter.detach() - average) * torch.tensor(1.0 - (config.trainer.ema_decay or 0.0)))
    return Ended(network.state_dict(), optimizer.state_dict()["state"], averages, scale)


def _set_gradients(
    network: FaultNetwork, task: FaultTask, config: Config, step: int, ranks: int, scale: float | None
) -> float | None:
    """Leave the gradients of a step; the loss scale that they have, halved until they were finite."""
    device = pick_device()
    items = task.dataset("train")
    indices = batch_indices(step, config.data.batch_size)
    before = {name: buffer.clone() for name, buffer in network.named_buffers()}
    gradients: list[list[Tensor]] = []
    for rank in reversed(range(ranks)):  # rank 0 last: its buffers stay
        _put_buffers(network, before)
        mine = indices[rank::ranks]
        network.zero_grad()
        dtype = _DTYPES.get(config.precision.dtype)
        with torch.autocast(device.type, dtype=dtype) if dtype else nullcontext():
            outputs = network(items.inputs[mine].to(device))
            mse = (outputs - items.targets[mine].to(device)).square().mean()
            loss = config.losses.weights.mse * mse + config.losses.weights.size * outputs.square().mean()
        (loss if scale is None else loss * torch.tensor(scale, device=device)).backward()  # type: ignore[no-untyped-call]
        gradients.insert(0, [parameter.grad for parameter in network.parameters() if parameter.grad is not None])
    if scale is not None and not all(bool(each.isfinite().all()) for part in gradients for each in part):
        _put_buffers(network, before)
        return _set_gradients(network, task, config, step, ranks, scale / 2)
    for parameter, *parts in zip(network.parameters(), *gradients, strict=True):
        parameter.grad = torch.stack(parts).sum(0) / ranks if ranks > 1 else parts[0]
    return scale


def _put_buffers(network: FaultNetwork, values: dict[str, Tensor]) -> None:
    for name, buffer in network.named_buffers():
        buffer.copy_(values[name])


def make_optimizer(network: torch.nn.Module, config: Config) -> torch.optim.Optimizer:
    """The optimizer of a config, fused."""
    values = config.optimizer
    if values.name == "sgd":
        return torch.optim.SGD(network.parameters(), lr=values.lr, momentum=values.momentum, fused=True)
    kind = torch.optim.Adam if values.name == "adam" else torch.optim.AdamW
    return kind(network.parameters(), lr=values.lr, weight_decay=values.weight_decay, fused=True)
