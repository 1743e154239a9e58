"""The selective scan of a state-space layer in plain PyTorch: exact, and the clamped form that goes wrong.

L = length of the sequence, B = images, D = channels, N = states a channel. Sequences run along the first axis.
Source: Gu and Dao, "Mamba: Linear-Time Sequence Modeling with Selective State Spaces" (arXiv 2312.00752).
"""

from __future__ import annotations

import math
from collections.abc import Callable
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
        rates: (D, N), < 0.
        write, read: (L, B, N), the B and C of the state-space literature.
        recurrence: `exact_recurrence` or `clamped_recurrence`.

    Returns:
        y (L, B, D), and the largest magnitude of a state, a scalar without gradient.
    """
    log_decay = step_sizes[..., None] * rates
    drive = (step_sizes * inputs)[..., None] * write[:, :, None, :]
    states = recurrence(log_decay, drive)
    outputs = (states @ read[..., None]).squeeze(-1)  # half precision inside an autocast region
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
    linearly in L. With steps of 0.05 and rates -1 to -4 it is right at L = 64, wrong by a factor of 28 at L = 256.
    """
    total = log_decay.cumsum(0).clamp(-_MAX_LOG_DECAY, _MAX_LOG_DECAY)
    return total.exp() * (drive * (-total).exp()).cumsum(0)


RECURRENCES: dict[Scan, Recurrence] = {"exact": exact_recurrence, "clamped": clamped_recurrence}


class _LinearRecurrence(torch.autograd.Function):
    """`h_t = decay_t h_(t-1) + drive_t`; its gradient is the same recurrence backwards in time."""

    @staticmethod
    def forward(decay: Tensor, drive: Tensor) -> Tensor:
        return _chunked(decay, drive)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        ctx.save_for_backward(inputs[0], output)

    @staticmethod
    def backward(ctx: Any, *grad_outputs: Tensor) -> tuple[Tensor, Tensor]:
        (gradient,) = grad_outputs
        decay, states = ctx.saved_tensors
        later_decay = torch.cat([decay[1:], torch.zeros_like(decay[:1])])
        drive_gradient = _linear_recurrence(later_decay.flip(0), gradient.flip(0)).flip(0)
        earlier_states = torch.cat([torch.zeros_like(states[:1]), states[:-1]])
        return drive_gradient * earlier_states, drive_gradient


def _linear_recurrence(decay: Tensor, drive: Tensor) -> Tensor:
    return cast(Tensor, _LinearRecurrence.apply(decay, drive))  # type: ignore[no-untyped-call]


def _chunked(decay: Tensor, drive: Tensor) -> Tensor:
    """About 2 sqrt(L) steps instead of L: all chunks at once from zero, then what each hands to the next.

    Exact up to rounding: only products of decays, never their inverse, so that nothing can overflow.
    """
    length, shape = drive.shape[0], drive.shape
    size = max(1, math.isqrt(length))
    num_chunks = -(-length // size)
    padding = (0, 0, 0, num_chunks * size - length)
    decay, drive = (
        torch.nn.functional.pad(each.reshape(length, -1), padding).view(num_chunks, size, -1) for each in (decay, drive)
    )
    states, decays = drive.clone(), decay.clone()  # within its chunk, from zero; product since the chunk began
    for position in range(1, size):
        states[:, position].addcmul_(decay[:, position], states[:, position - 1])
        decays[:, position].mul_(decays[:, position - 1])
    carry = torch.zeros_like(states[:, 0])
    for chunk in range(1, num_chunks):
        torch.addcmul(states[chunk - 1, -1], decays[chunk - 1, -1], carry[chunk - 1], out=carry[chunk])
    return states.addcmul_(decays, carry[:, None]).view(num_chunks * size, -1)[:length].reshape(shape)
