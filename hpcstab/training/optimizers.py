"""Optimizers and the learning rate by update."""

from __future__ import annotations

import math

import torch
from torch import nn

from hpcstab.config.common import OptimizerConfig, SchedulerConfig


def build_optimizer(network: nn.Module, config: OptimizerConfig) -> torch.optim.Optimizer:
    """The fused form of the optimizer, over all parameters that require a gradient."""
    parameters = [parameter for parameter in network.parameters() if parameter.requires_grad]
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


def set_learning_rate(optimizer: torch.optim.Optimizer, lr: float) -> None:
    for group in optimizer.param_groups:
        group["lr"] = lr
