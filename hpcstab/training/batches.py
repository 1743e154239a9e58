"""The order of batches: the same seed gives the same permutation of sample ids, whatever reads them."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch.utils.data import DataLoader, Sampler

from hpcstab.config import DataConfig
from hpcstab.errors import ConfigError
from hpcstab.seeds import keyed_seed
from hpcstab.task import Batch, TaskDataset
from hpcstab.training.faults import with_fault
from hpcstab.training.ranks import ALONE, Ranks


@dataclass(frozen=True)
class StepBatch:
    """The batch of one step and the ids of its samples."""

    step: int
    epoch: int
    ids: tuple[str, ...]
    batch: Batch


class EpochOrder(Sampler[list[int]]):
    """This rank's share of the batches of one epoch, as indices, from batch ``first`` on; an incomplete last batch is
    left out."""

    def __init__(
        self, num_items: int, batch_size: int, seed: int, epoch: int, first: int, ranks: Ranks = ALONE
    ) -> None:
        generator = torch.Generator().manual_seed(keyed_seed(seed, "permutation", epoch))
        order = torch.randperm(num_items, generator=generator).tolist()
        full = num_items // batch_size
        whole = [order[index * batch_size : (index + 1) * batch_size] for index in range(first, full)]
        self.batches = [ranks.share(batch) for batch in whole]

    def __iter__(self) -> Iterator[list[int]]:
        return iter(self.batches)

    def __len__(self) -> int:
        return len(self.batches)


class TrainingBatches:
    """Batches of a training by step, or a rank's share of them, in an endless row of epochs."""

    def __init__(self, dataset: TaskDataset, config: DataConfig, seed: int, ranks: Ranks = ALONE) -> None:
        batch_size = config.batch_size
        self._ranks = ranks
        self._dataset = dataset
        self._batch_size = batch_size
        self._seed = seed
        self._num_workers = config.num_workers
        self._faults = {fault.step: fault for fault in config.faults} if ranks.is_first else {}
        self.steps_per_epoch = len(dataset) // batch_size
        if self.steps_per_epoch == 0:
            raise ConfigError(
                f"data.batch_size is {batch_size}, but there are only {len(dataset)} training items; make it smaller"
            )

    def from_step(self, step: int) -> Iterator[StepBatch]:
        """Batches from the position ``step`` on, without end."""
        epoch, position = divmod(step, self.steps_per_epoch)
        while True:
            order = self._order(epoch, position)
            for indices, batch in zip(order.batches, self._loader(order, epoch), strict=True):
                if step in self._faults:
                    batch = with_fault(batch, self._faults[step])
                yield StepBatch(step, epoch, tuple(self._dataset.ids[index] for index in indices), batch)
                step += 1
            epoch, position = epoch + 1, 0

    def ids_of(self, step: int) -> tuple[str, ...]:
        """Ids of the samples of a step."""
        epoch, position = divmod(step, self.steps_per_epoch)
        return tuple(self._dataset.ids[index] for index in self._order(epoch, position).batches[0])

    def _order(self, epoch: int, first: int) -> EpochOrder:
        return EpochOrder(len(self._dataset), self._batch_size, self._seed, epoch, first, self._ranks)

    def _loader(self, order: EpochOrder, epoch: int) -> DataLoader[Any]:
        generator = torch.Generator().manual_seed(keyed_seed(self._seed, "loader", epoch))
        dataset: Any = self._dataset
        return DataLoader(dataset, batch_sampler=order, num_workers=self._num_workers, generator=generator)


def to_device(batch: Batch, device: torch.device) -> Batch:
    """Tensors of a batch on the device; tuples, lists and dicts keep their form."""
    if isinstance(batch, torch.Tensor):
        return batch.to(device, non_blocking=True)
    if isinstance(batch, dict):
        return {key: to_device(value, device) for key, value in batch.items()}
    if isinstance(batch, (list, tuple)):
        return type(batch)(to_device(value, device) for value in batch)
    return batch


def micro_batches(batch: Batch, count: int) -> list[Batch]:
    """A batch cut along the first axis of all its tensors into ``count`` equal parts."""
    if count == 1:
        return [batch]
    if isinstance(batch, torch.Tensor):
        return list(batch.chunk(count))
    if isinstance(batch, dict):
        parts = {key: micro_batches(value, count) for key, value in batch.items()}
        return [{key: values[index] for key, values in parts.items()} for index in range(count)]
    if isinstance(batch, (list, tuple)):
        columns = [micro_batches(value, count) for value in batch]
        return [type(batch)(column[index] for column in columns) for index in range(count)]
    return [batch] * count
