"""One decision for all ranks of a training."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator

import torch
import torch.distributed as dist
from torch import Tensor

from hpcstab.errors import RankLostError


@contextlib.contextmanager
def contact() -> Iterator[None]:
    """Around what all ranks do together: one that was lost is an error with a name.

    Raises:
        RankLostError: a rank has ended, or has not answered in time.
    """
    try:
        yield
    except RuntimeError as error:  # what torch raises then: DistBackendError, and gloo's plain ones
        reason = str(error).splitlines()[0]
        raise RankLostError(f"rank {rank()} of {world_size()} has lost contact with the others: {reason}") from error


def agreement() -> Callable[[Tensor], Tensor] | None:
    """Makes each rank's tensor the largest of all ranks', in place; None where there is one rank.

    The largest and never the sum: fused optimizers compare ``found_inf`` with 1, and a flag of 2 would be stepped with.
    """
    if not (dist.is_available() and dist.is_initialized() and dist.get_world_size() > 1):
        return None

    def largest(values: Tensor) -> Tensor:
        with contact():
            dist.all_reduce(values, op=dist.ReduceOp.MAX)
        return values

    return largest


def rank() -> int:
    """This process's rank, 0 where there is one."""
    return dist.get_rank() if dist.is_available() and dist.is_initialized() else 0


def world_size() -> int:
    """The number of ranks."""
    return dist.get_world_size() if dist.is_available() and dist.is_initialized() else 1


def largest_number(number: int, agree: Callable[[Tensor], Tensor] | None, device: torch.device) -> int:
    """The largest of all ranks' numbers, on the host; waits for the device."""
    return number if agree is None else int(agree(torch.tensor(float(number), device=device)))
