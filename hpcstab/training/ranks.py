"""The processes that train one network together: each has its share of every batch, and all decide alike.

Gradients are averaged after the backward pass, so that a task is handed its own network and may do with it what it
likes (parts of it, several passes, several optimizers). Buffers are those of rank 0, as under DistributedDataParallel.
"""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor

from hpcstab.errors import ConfigError

T = TypeVar("T")


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``count`` processes; a training without others is rank 0 of 1, and nothing here costs it anything."""

    rank: int = 0
    count: int = 1

    @property
    def is_first(self) -> bool:
        """Whether this process writes the run's files."""
        return self.rank == 0

    def share(self, items: Sequence[int]) -> list[int]:
        """This rank's part of a batch: every ``count``-th item from its own on."""
        return list(items[self.rank :: self.count])

    def average_gradients(self, parameters: Sequence[Tensor]) -> None:
        """Give all ranks the mean of their gradients; all have gradients for the same parameters."""
        if self.count == 1:
            return
        gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
        flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
        dist.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(of) for part, of in zip(parts, gradients, strict=True)])

    def take_buffers_of_first(self, buffers: Sequence[Tensor]) -> None:
        """Give all ranks the buffers of rank 0, before a forward pass."""
        if self.count == 1:
            return
        for buffer in buffers:
            dist.broadcast(buffer, 0)

    def gather(self, values: Tensor) -> Tensor:
        """The vectors (n,) of all ranks as (count, n), by rank."""
        if self.count == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.count)]
        dist.all_gather(rows, values)
        return torch.stack(rows)

    def of_all(self, value: T) -> list[T]:
        """Small plain values of all ranks, by rank; waits for all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        dist.all_gather_object(found, value)
        return found

    def of_first(self, value: T) -> T:
        """The value that rank 0 has: what one decides for all; waits for it."""
        return self.of_all(value)[0]

    def any_of(self, names: Sequence[str]) -> list[str]:
        """Names that some rank has, in the order of ranks."""
        return list(dict.fromkeys(name for each in self.of_all(list(names)) for name in each))


ALONE = Ranks()
"""A training in one process."""


def join_ranks(batch_size: int, num_micro_batches: int) -> Ranks:
    """The ranks that the launcher started (torchrun's RANK and WORLD_SIZE); one where there was none.

    Raises:
        ConfigError: a batch cannot be shared equally.
    """
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    if batch_size % (count * num_micro_batches):
        raise ConfigError(
            f"data.batch_size {batch_size} cannot be shared equally by {count} ranks with {num_micro_batches} "
            "trainer.micro_batches each: make it a multiple of their product"
        )
    if not dist.is_initialized():
        dist.init_process_group("nccl" if torch.cuda.is_available() else "gloo")
    return Ranks(dist.get_rank(), count)
