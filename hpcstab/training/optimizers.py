"""Optimizers and the learning rate by update."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from hpcstab.config.common import OptimizerConfig, SchedulerConfig
from hpcstab.errors import ConfigError
from hpcstab.task import Task


class Optimizers:
    """All optimizers of a training as one: one gate decision steps them, one schedule sets their learning rates.

    The schedule is that of ``config.optimizer``; another optimizer's rate is a constant multiple of it: it begins
    with the one that its own config states. With a single optimizer ``state_dict`` is that optimizer's own.
    """

    def __init__(self, members: Mapping[str, torch.optim.Optimizer], base_lr: float) -> None:
        self._members = dict(members)
        self._shares = {name: each.param_groups[0]["lr"] / base_lr for name, each in members.items()}

    def __iter__(self) -> Iterator[torch.optim.Optimizer]:
        return iter(self._members.values())

    @property
    def state(self) -> dict[Tensor, Any]:
        """The state of every parameter, whichever optimizer keeps it."""
        return {parameter: values for member in self for parameter, values in member.state.items()}

    @property
    def param_groups(self) -> list[dict[str, Any]]:
        return [group for member in self for group in member.param_groups]

    def zero_grad(self) -> None:
        for member in self:
            member.zero_grad(set_to_none=True)

    def set_learning_rate(self, lr: float) -> None:
        """``lr`` for the optimizer of the config, its multiple for the others."""
        for name, member in self._members.items():
            for group in member.param_groups:
                group["lr"] = lr * self._shares[name]

    def state_dict(self) -> dict[str, Any]:
        states = {name: member.state_dict() for name, member in self._members.items()}
        return next(iter(states.values())) if len(states) == 1 else states

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Raises ValueError or KeyError where it is that of other optimizers."""
        if len(self._members) == 1:
            state = {next(iter(self._members)): state}
        if state.keys() != self._members.keys():
            raise ValueError(f"it holds the optimizers {', '.join(state)}; needed are {', '.join(self._members)}")
        for name, member in self._members.items():
            saved, own = state[name]["param_groups"][0].keys(), member.state_dict()["param_groups"][0].keys()
            if not (saved <= own or own <= saved):  # newer versions of torch add keys
                raise ValueError(f"the state of {name} is not that of {type(member).__name__}")
        for name, member in self._members.items():
            member.load_state_dict(dict(state[name]))


def build_optimizers(task: Task, network: nn.Module, config: OptimizerConfig) -> Optimizers:
    """The optimizers that the task asks for; one over all parameters that require a gradient where it asks for none.

    Raises:
        ConfigError: some parameter has no optimizer, or two.
    """
    trained = [parameter for parameter in network.parameters() if parameter.requires_grad]
    ask = getattr(task, "optimizers", None)
    wanted = dict(ask(network)) if ask is not None else {"network": (config, trained)}
    given = [parameter for _, parameters in wanted.values() for parameter in parameters]
    if len(given) != len(trained) or set(given) != set(trained):
        raise ConfigError(
            f"task {type(task).__name__}: its optimizers step {len(set(given))} parameters, {len(given)} in all; each"
            f" of the {len(trained)} that require a gradient must have exactly one"
        )
    members = {name: _build(parameters, own) for name, (own, parameters) in wanted.items()}
    return Optimizers(members, config.lr)


def _build(parameters: Iterable[Tensor], config: OptimizerConfig) -> torch.optim.Optimizer:
    """The fused form of an optimizer."""
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(update: int, base_lr: float, scheduler: SchedulerConfig, warmup_updates: int, total: int) -> float:
    """Learning rate of the update with index ``update`` (from 0) of ``total``.

    It is linear from base/warmup to base over the warm-up, then constant, or a half cosine that ends
    at ``min_lr_fraction`` of the base.
    """
    if update < warmup_updates:
        return base_lr * (update + 1) / warmup_updates
    if scheduler.name == "constant":
        return base_lr
    progress = min(1.0, (update - warmup_updates) / max(1, total - warmup_updates))
    cosine = 0.5 * (1.0 + math.cos(math.pi * progress))
    return base_lr * (scheduler.min_lr_fraction + (1.0 - scheduler.min_lr_fraction) * cosine)
