"""The processes that train one network together: each has its share of every batch, and all decide alike.

Gradients are averaged after the backward pass, so that a task is handed its own network and may do with it what it
likes (parts of it, several passes, several optimizers). Buffers are those of rank 0, as under DistributedDataParallel.
"""

from __future__ import annotations

import gc
import os
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from socket import gethostname
from typing import Any, TypeVar

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm

from hpcstab.config import RunConfig
from hpcstab.errors import ConfigError, RankLostError
from hpcstab.stability.gate.ranks import contact
from hpcstab.task import Task

T = TypeVar("T")

MEETING = "HPCSTAB_MEETING"
"""Variable with the file over which the ranks of one machine meet; without it they meet at MASTER_ADDR, MASTER_PORT."""
_JOIN_S = 120.0  # all import torch first, perhaps from a slow disk
_GLOO_S = 30.0  # a lost process is noticed at once, since its connections close; this is for one that hangs


@dataclass(frozen=True)
class Ranks:
    """``rank`` of ``count`` processes; a training without others is rank 0 of 1, and nothing here costs it anything.

    ``members``: host and process id of each rank, where they are known.
    """

    rank: int = 0
    count: int = 1
    members: tuple[tuple[str, int], ...] = ()

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
        with contact():
            dist.all_reduce(flat)
        flat /= self.count
        parts = torch.split(flat, [gradient.numel() for gradient in gradients])
        torch._foreach_copy_(gradients, [part.view_as(of) for part, of in zip(parts, gradients, strict=True)])

    def take_buffers_of_first(self, buffers: Sequence[Tensor]) -> None:
        """Give all ranks the buffers of rank 0, before a forward pass."""
        if self.count == 1:
            return
        with contact():
            for buffer in buffers:
                dist.broadcast(buffer, 0)

    def gather(self, values: Tensor) -> Tensor:
        """The vectors (n,) of all ranks as (count, n), by rank."""
        if self.count == 1:
            return values[None]
        rows = [torch.empty_like(values) for _ in range(self.count)]
        with contact():
            dist.all_gather(rows, values)
        return torch.stack(rows)

    def of_all(self, value: T) -> list[T]:
        """Small plain values of all ranks, by rank; waits for all of them."""
        if self.count == 1:
            return [value]
        found: list[Any] = [None] * self.count
        with contact():
            dist.all_gather_object(found, value)
        return found

    def of_first(self, value: T) -> T:
        """The value that rank 0 has: what one decides for all; waits for it."""
        return self.of_all(value)[0]

    def ended(self) -> list[int]:
        """Ranks on this host whose process is no more; of other hosts none can be seen."""
        return [rank for rank, (host, pid) in enumerate(self.members) if host == gethostname() and not _lives(pid)]

    def any_of(self, names: Sequence[str]) -> list[str]:
        """Names that some rank has, in the order of ranks."""
        return list(dict.fromkeys(name for each in self.of_all(list(names)) for name in each))


ALONE = Ranks()
"""A training in one process."""


def join_ranks() -> Ranks:
    """The ranks that the launcher started (RANK and WORLD_SIZE, as torchrun has them); one where there was none.

    Raises:
        RankLostError: not all of them came.
    """
    if dist.is_initialized():
        return Ranks(dist.get_rank(), dist.get_world_size())
    count = int(os.environ.get("WORLD_SIZE", "1"))
    if count == 1:
        return ALONE
    rank = int(os.environ["RANK"])
    has_gpu = torch.cuda.is_available()
    dist.init_process_group(
        "nccl" if has_gpu else "gloo",
        store=_meet(rank, count),
        rank=rank,
        world_size=count,
        timeout=None if has_gpu else timedelta(seconds=_GLOO_S),
    )
    members = Ranks(rank, count).of_all((gethostname(), os.getpid()))
    return Ranks(rank, count, tuple(members))


def leave_ranks() -> None:
    """Let go of the others at the end of a training.

    A thread of gloo that still holds a tensor while the interpreter is torn down would abort the process.
    """
    if dist.is_initialized():
        dist.destroy_process_group()
        gc.collect()


def shares_of(config: RunConfig, num_ranks: int) -> dict[str, int]:
    """How a batch is shared: the batch of an update is ``batch_size``, whatever the number of ranks."""
    batch_size = config.data.batch_size
    return {
        "num_ranks": num_ranks,
        "batch_size": batch_size,
        "batch_size_per_rank": batch_size // num_ranks,
        "micro_batches": config.trainer.micro_batches,
    }


def what_joins_samples(task: Task, network: nn.Module) -> list[str]:
    """What makes a sample's gradient depend on the other samples of its rank: more ranks are another training then."""
    batchnorm = ["BatchNorm"] if any(isinstance(layer, _BatchNorm) for layer in network.modules()) else []
    return batchnorm + list(getattr(task, "joins_samples", ()))


def check_shares(batch_size: int, num_micro_batches: int, num_ranks: int) -> None:
    """Refuse batches that the ranks cannot share equally.

    Raises:
        ConfigError: says which size would do.
    """
    if batch_size % (num_ranks * num_micro_batches):
        raise ConfigError(
            f"data.batch_size {batch_size} cannot be shared equally by {num_ranks} ranks with {num_micro_batches} "
            "trainer.micro_batches each: make it a multiple of their product"
        )


def _meet(rank: int, count: int) -> Any:
    """The store of all ranks, once all are there."""
    patience = timedelta(seconds=_JOIN_S)
    here = [f"rank_{other}" for other in range(count)]
    try:
        if MEETING in os.environ:
            store: Any = dist.FileStore(os.environ[MEETING], count)  # type: ignore[attr-defined]
        else:
            address, port = os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
            store = dist.TCPStore(  # type: ignore[attr-defined]
                address, port, count, rank == 0, patience, wait_for_workers=False
            )
        store.set(here[rank], "here")
        store.wait(here, patience)
    except (RuntimeError, KeyError) as error:  # torch's own errors of stores are RuntimeErrors
        reason = str(error).splitlines()[0]
        raise RankLostError(
            f"the {count} ranks did not all come in {_JOIN_S:.0f} s (this is rank {rank}): {reason}"
        ) from None
    return store


def _lives(pid: int) -> bool:
    """False also for one that has ended and was not waited for: its state, after the name in brackets, is Z."""
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] not in "ZX"
    except OSError:
        return False
