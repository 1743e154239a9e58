"""The random draws of a training step, each keyed by what it is for and by the sample, not by its place in a batch.

So neither the batch, nor the ranks or micro-batches that share it, nor a resume, nor a replay without some sample
changes a draw. A generator for each sample would need its number on the host; here it stays on the device.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from hpcstab.seeds import keyed_seed
from hpcstab.task import StepContext

_BITS = 24  # of a uniform number: what fp32 holds exactly
_GOLDEN, _MIX_1, _MIX_2 = 0x9E3779B97F4A7C15, 0xBF58476D1CE4E5B9, 0x94D049BB133111EB


class Draws(NamedTuple):
    """Of each sample: step ``t`` (B,), ``noise`` of a latent's shape, ``dropped`` condition (B,), ``slices`` (B,)."""

    t: Tensor
    noise: Tensor
    dropped: Tensor
    slices: Tensor


def draw(
    context: StepContext,
    numbers: Tensor,
    shape: torch.Size,
    *,
    num_timesteps: int,
    num_items: int,
    num_slices: int,
    dropout: float,
) -> Draws:
    """The draws of one step.

    Args:
        numbers: (B,) int64, of the samples among the ``num_items`` of the training set.
        shape: of a latent, (C, d, d, d).
        num_slices: of a volume, of which one is looked at.
        dropout: share of conditions that are dropped.
    """
    single = uniform(context, "single", numbers, 3)
    return Draws(
        t=stratified_timesteps(context, numbers, single[:, 0], num_timesteps, num_items),
        noise=normal(context, "noise", numbers, shape),
        dropped=single[:, 1] < dropout,
        slices=(single[:, 2] * num_slices).long(),
    )


def stratified_timesteps(
    context: StepContext, numbers: Tensor, within: Tensor, num_timesteps: int, num_items: int
) -> Tensor:
    """Steps t (B,) int64: over an epoch the items share 0..T-1 equally, each with a part of it for itself.

    The parts are dealt anew in each epoch. With 500 items or more the part at the top is T = 1000's 998 and 999, and
    one sample of each epoch has it; independent draws would leave it out of a third of the epochs.

    Args:
        numbers: (B,) of the samples; within: (B,) in [0, 1), the place inside a sample's part.
    """
    generator = torch.Generator(context.device).manual_seed(keyed_seed(context.seed, "timesteps", context.epoch))
    parts = torch.randperm(num_items, generator=generator, device=context.device)[numbers]
    t = ((parts + within.double()) * (num_timesteps / num_items)).long()
    return t.clamp(max=num_timesteps - 1)


def normal(context: StepContext, purpose: str, numbers: Tensor, shape: torch.Size) -> Tensor:
    """N(0, 1) for each sample, (B, *shape), fp32, by Box and Muller."""
    count = math.prod(shape)
    both = uniform(context, purpose, numbers, 2 * count)
    radius = (-2.0 * (1.0 - both[:, :count]).log()).sqrt()  # 1 - u is above 0
    return (radius * (2.0 * math.pi * both[:, count:]).cos()).reshape(len(numbers), *shape)


def uniform(context: StepContext, purpose: str, numbers: Tensor, count: int) -> Tensor:
    """Uniform numbers in [0, 1), (B, count), fp32: a hash of (seed, purpose, step, number of the sample, position).

    Source: SplitMix64, Steele et al., "Fast splittable pseudorandom number generators" (2014), as a counter-based one.
    """
    key = keyed_seed(context.seed, purpose, context.step)
    streams = _mixed(numbers.to(torch.int64) * _signed(_GOLDEN) + key)
    positions = torch.arange(1, count + 1, device=numbers.device) * _signed(_GOLDEN)
    return (_mixed(streams[:, None] + positions) >> (64 - _BITS) & (1 << _BITS) - 1).float() / (1 << _BITS)


def _mixed(values: Tensor) -> Tensor:
    """SplitMix64's finaliser; int64 as it wraps around is the arithmetic of uint64."""
    values = (values ^ _shifted(values, 30)) * _signed(_MIX_1)
    values = (values ^ _shifted(values, 27)) * _signed(_MIX_2)
    return values ^ _shifted(values, 31)


def _shifted(values: Tensor, count: int) -> Tensor:
    """A shift to the right that fills with zeros."""
    return values >> count & (1 << 64 - count) - 1


def _signed(value: int) -> int:
    """The int64 with the bits of a uint64."""
    return value - (1 << 64) if value >> 63 else value
