"""The random draws of a training step, each keyed by what it is for and by the sample, not by its place in a batch.

So neither the batch, nor the ranks that share it, nor a resume changes a draw.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from hpcstab.seeds import keyed_seed
from hpcstab.task import StepContext


@dataclass(frozen=True)
class Draws:
    """Of each sample: step ``t`` (B,), ``noise`` of a latent's shape, ``dropped`` condition (B,), ``slices`` (B,)."""

    t: Tensor
    noise: Tensor
    dropped: Tensor
    slices: Tensor


def draw(
    context: StepContext, numbers: Tensor, shape: torch.Size, num_timesteps: int, num_items: int, num_slices: int, dropout: float
) -> Draws:
    """The draws of one step.

    Args:
        numbers: (B,) of the samples among the ``num_items`` of the training set.
        shape: of a latent, (C, d, d, d).
        num_slices: of a volume, of which one is looked at.
        dropout: share of conditions that are dropped.
    """
    device = context.device
    generators = [
        torch.Generator(device).manual_seed(keyed_seed(context.seed, "sample", context.step, name)) for name in context.ids
    ]
    noise = torch.stack([torch.randn(shape, generator=each, device=device) for each in generators])
    uniform = torch.stack([torch.rand(3, generator=each, device=device) for each in generators])
    t = stratified_timesteps(context, numbers, uniform[:, 0], num_timesteps, num_items)
    return Draws(t, noise, uniform[:, 1] < dropout, (uniform[:, 2] * num_slices).long())


def stratified_timesteps(
    context: StepContext, numbers: Tensor, within: Tensor, num_timesteps: int, num_items: int
) -> Tensor:
    """Steps t (B,) int64: over an epoch the items share 0..T-1 equally, each with a part of it for itself.

    The parts are dealt anew in each epoch. With 500 items or more the part at the top is T = 1000's 998 and 999, and one
    sample of each epoch has it; independent draws would have it in one of two epochs of 300 items.

    Args:
        numbers: (B,) of the samples; within: (B,) in [0, 1), the place inside a sample's part.
    """
    generator = torch.Generator(context.device).manual_seed(keyed_seed(context.seed, "timesteps", context.epoch))
    parts = torch.randperm(num_items, generator=generator, device=context.device)[numbers]
    t = ((parts + within.double()) * (num_timesteps / num_items)).long()
    return t.clamp(max=num_timesteps - 1)
