"""The selective scan of a state-space layer in plain PyTorch: exact, and the clamped form that goes wrong.

L = length of the sequence, B = images, D = channels, N = states a channel. Sequences run along the first axis.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from itertools import pairwise
from typing import Any, Literal, cast

import torch
from torch import Tensor

Recurrence = Callable[[Tensor, Tensor], Tensor]  # (log_decay, drive) -> states, all (L, ...)
Scan = Literal["exact", "clamped"]

_MAX_LOG_DECAY = 20.0  # of the fallback scan that the write-up's training used


def selective_scan(
    inputs: Tensor, step_sizes: Tensor, rates: Tensor, write: Tensor, read: Tensor, recurrence: Recurrence
) -> tuple[Tensor, Tensor]:
    """`h_t = exp(step_t rate) h_(t-1) + step_t write_t x_t`, `y_t = sum_n read_t h_t`, from h = 0.

    Args:
        inputs: x (L, B, D).
        step_sizes: (L, B, D), > 0, in steps of the continuous system.
        rates: (N, D), < 0.
        write, read: (L, B, N), the B and C of the state-space literature.
        recurrence: `exact_recurrence` or `clamped_recurrence`.

    Returns:
        y (L, B, D), and the largest magnitude of a state, a scalar without gradient.
    """
    log_decay = step_sizes[:, :, None, :] * rates
    drive = write[..., None] * (step_sizes * inputs)[:, :, None, :]
    states = recurrence(log_decay, drive)
    outputs = (read[:, :, None, :] @ states).squeeze(2)  # half precision inside an autocast region
    return outputs, states.detach().abs().amax()


def exact_recurrence(log_decay: Tensor, drive: Tensor) -> Tensor:
    """`h_t = exp(log_decay_t) h_(t-1) + drive_t` along the first axis, from h = 0; differentiable any number of times.

    Args:
        log_decay: (L, ...), <= 0.
        drive: (L, ...).

    Returns:
        States (L, ...).
    """
    dtype = torch.promote_types(log_decay.dtype, drive.dtype)
    return _linear_recurrence(log_decay.to(dtype).exp(), drive.to(dtype))


def clamped_recurrence(log_decay: Tensor, drive: Tensor) -> Tensor:
    """The failing state's form of `exact_recurrence`: a cumulative sum scaled by a decay that is clamped to e^-20.

    Once a channel has decayed by 20 nats it forgets nothing more and sums up its drive, so that states grow
    linearly in L. With steps of 0.05, rates -1 to -4 and a constant drive it is right at L = 64 and wrong by factors
    of 28 at L = 256 and 724 at L = 4096.
    """
    total = log_decay.cumsum(0).clamp(-_MAX_LOG_DECAY, _MAX_LOG_DECAY)
    return total.exp() * (drive * (-total).exp()).cumsum(0)


RECURRENCES: dict[Scan, Recurrence] = {"exact": exact_recurrence, "clamped": clamped_recurrence}


class _LinearRecurrence(torch.autograd.Function):
    """`h_t = decay_t h_(t-1) + drive_t`, or with h_(t+1) where `backwards`; its gradient runs the other way."""

    @staticmethod
    def forward(decay: Tensor, drive: Tensor, backwards: bool) -> Tensor:
        return _chunked(decay, drive, backwards)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor, bool], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)
        ctx.backwards = inputs[2]

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor, None]:
        (gradient,) = grad_outputs
        decay, states = ctx.saved_tensors
        drive_gradient = _linear_recurrence(_neighbours(decay, not ctx.backwards), gradient, not ctx.backwards)
        return drive_gradient * _neighbours(states, ctx.backwards), drive_gradient, None


def _linear_recurrence(decay: Tensor, drive: Tensor, backwards: bool = False) -> Tensor:
    return cast(Tensor, _LinearRecurrence.apply(decay, drive, backwards))  # type: ignore[no-untyped-call]


def _neighbours(values: Tensor, later: bool) -> Tensor:
    """At each t the values of t - 1, or of t + 1; zero where there is none."""
    none = torch.zeros_like(values[:1])
    return torch.cat([values[1:], none] if later else [none, values[:-1]])


def _chunked(decay: Tensor, drive: Tensor, backwards: bool) -> Tensor:
    """About 2 sqrt(L) steps instead of L: all chunks at once from zero, then what each hands to the next.

    Exact up to rounding: only products of decays, never their inverse, so that nothing can overflow.
    """
    length, size = len(drive), math.isqrt(len(drive))
    decays, states = (_in_chunks(each, size) for each in (decay, drive))  # decays since the chunk began; from zero
    steps = list(zip(decays.unbind(1), states.unbind(1), strict=True))
    for (decay_before, state_before), (decay_now, state_now) in pairwise(reversed(steps) if backwards else steps):
        state_now.addcmul_(decay_now, state_before)
        decay_now.mul_(decay_before)
    states.addcmul_(decays, _carried(*steps[0 if backwards else -1], backwards)[:, None])
    return states.flatten(0, 1)[:length].reshape(drive.shape)


def _carried(decays: Tensor, states: Tensor, backwards: bool) -> Tensor:
    """What each chunk gets from those before it, from what each makes of a zero and by how much it decays; (K, M)."""
    carried = [torch.zeros_like(states[0])]
    chunks = list(zip(decays.unbind(), states.unbind(), strict=True))
    for decay, state in chunks[:0:-1] if backwards else chunks[:-1]:
        carried.append(torch.addcmul(state, decay, carried[-1]))
    return torch.stack(carried[::-1] if backwards else carried)


def _in_chunks(sequence: Tensor, size: int) -> Tensor:
    """A copy of (L, ...) as (ceil(L / size), size, M), with zeros at its end."""
    flat = sequence.reshape(len(sequence), -1)
    missing = -len(flat) % size
    padded = torch.cat([flat, flat.new_zeros(missing, flat.shape[1])]) if missing else flat.clone()
    return padded.view(-1, size, flat.shape[1])
