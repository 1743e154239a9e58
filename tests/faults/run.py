"""One rank of one cell, with the real trainer: how it ended, how late the fault was seen, what is left of it."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from hpcstab.rundir import RunDir, write_json
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from hpcstab.training.step import Pending, Signals
from tests.faults.cells import STATE_SITES, Cell
from tests.faults.reference import Ended, train_plainly
from tests.faults.settings import (
    FAULT_STEP,
    OVERGROWN_SCALE,
    config_of,
    damage,
    is_of_the_scale,
    name_of_state,
    ranks_of_fault,
)
from tests.faults.task import FaultTask

_IDENTITY = {
    "run_id": "toy",
    "seed": 0,
    "compare": {"primary": "error", "margin": 0.01, "horizon_steps": 15, "hierarchy": ["finite"]},
    "failure": [],
}


@dataclass(frozen=True)
class Trained:
    """What a rank says of its training.

    Attributes:
        ended: the state of the run.
        device_latency: steps from that of the fault to the one that the device refused, or found the state sick after.
        host_latency: steps given to the device after that of the fault until the host went back. None: never.
        network, optimizer, average, loss_scale: whether each is bitwise what it has to be.
    """

    ended: str
    device_latency: int | None
    host_latency: int | None
    network: bool
    optimizer: bool
    average: bool
    loss_scale: bool

    @property
    def recovered(self) -> bool:
        """All of them are."""
        return self.network and self.optimizer and self.average and self.loss_scale


def task_of(cell: Cell, rank: int) -> FaultTask:
    """The task of a rank; a bad sample is in the data of all, and in one rank's share of the batch."""
    is_here = rank in ranks_of_fault(cell) or cell.site == "input"
    return FaultTask(config_of(cell), cell.kind, cell.site, FAULT_STEP if is_here else -1)


def run_dir_of(root: Path, cell: Cell) -> RunDir:
    return RunDir(root / str(cell) / "20260101_000000_s0_00000000")


def train_cell(cell: Cell, root: Path) -> Trained:
    """Train with the cell's fault, in this process; of several ranks each calls it."""
    rank = int(os.environ["RANK"]) if cell.ranks > 1 else 0
    run = run_dir_of(root, cell)
    if rank == 0:
        run.attempts.mkdir(parents=True)
        write_json(run.run_json, _IDENTITY)
    if cell.ranks > 1:
        dist.barrier()
    trainer = build_trainer(task_of(cell, rank), config_of(cell), run, 0, 1, "error")
    watch = Watch(trainer, cell if rank in ranks_of_fault(cell) else None)
    ended = trainer.train().state
    trainer.records.close()
    expected = expected_end(cell)
    device_latency, host_latency = latencies(watch.steps())
    return Trained(
        ended,
        device_latency,
        host_latency,
        network=same(expected.network, trainer.network.state_dict()),
        optimizer=same(expected.optimizer, trainer.optimizer.state_dict()["state"]),
        average=same(expected.average, _averages(trainer)),
        loss_scale=expected.loss_scale == _loss_scale(trainer),
    )


class Watch:
    """Keeps every step that was given to the device, in order; damages the state before that of the fault, once.

    ``cell``: None on a rank without a fault.
    """

    def __init__(self, trainer: Trainer, cell: Cell | None) -> None:
        self._trainer, self._cell = trainer, cell
        self._launch = trainer.runner.launch
        self._given: list[Pending] = []
        trainer.runner.launch = self._watched  # type: ignore[method-assign]

    def steps(self) -> list[tuple[int, Signals]]:
        """(step, what it said) in the order in which they were given."""
        return [(pending.step, pending.read()) for pending in self._given]

    def _watched(self, item: Any, *args: Any, **kwargs: Any) -> Pending:
        is_first_time = all(pending.step != item.step for pending in self._given)
        if self._cell is not None and item.step == FAULT_STEP and is_first_time:
            self._damage(self._cell)
        self._given.append(self._launch(item, *args, **kwargs))
        return self._given[-1]

    def _damage(self, cell: Cell) -> None:
        name, runner = name_of_state(cell), self._trainer.runner
        if name is not None:
            damage(runner.state_tensors()[name], cell)
        elif is_of_the_scale(cell):
            assert runner.gate.loss_scale is not None
            runner.gate.loss_scale.value.fill_(OVERGROWN_SCALE)


def latencies(steps: list[tuple[int, Signals]]) -> tuple[int | None, int | None]:
    """(device, host) latency, from the steps in the order in which they were given; None: never."""
    first = next(index for index, (step, _) in enumerate(steps) if step == FAULT_STEP)
    later = steps[first:]
    device = next((late for late, (_, said) in enumerate(later) if said.bad or not said.state_finite), None)
    host = next((late for late, (step, _) in enumerate(later[:-1]) if later[late + 1][0] <= step), None)
    return device, host


def expected_end(cell: Cell) -> Ended:
    """Batch faults: as if the batch had never come; others: as if the fault had never been."""
    is_batch_fault = cell.site not in STATE_SITES and not is_of_the_scale(cell)
    overgrown = (FAULT_STEP, OVERGROWN_SCALE) if is_of_the_scale(cell) else None
    plain = Cell("", "", cell.precision, cell.optimizer, cell.ranks)  # many cells have the same end
    return _plain_end(plain, FAULT_STEP if is_batch_fault else None, overgrown)


@cache
def _plain_end(cell: Cell, without: int | None, overgrown: tuple[int, float] | None) -> Ended:
    return train_plainly(config_of(cell), cell.ranks, without=without, overgrown=overgrown)


def same(expected: Any, got: Any) -> bool:
    """Whether all tensors are the same to the bit."""
    if isinstance(expected, Tensor):
        return torch.equal(expected, got)
    if isinstance(expected, Mapping):
        return expected.keys() == got.keys() and all(same(value, got[key]) for key, value in expected.items())
    return len(expected) == len(got) and all(map(same, expected, got))


def _averages(trainer: Trainer) -> list[Tensor]:
    assert trainer.runner.gate.ema is not None
    return [average for _, average in trainer.runner.gate.ema.tensors()]


def _loss_scale(trainer: Trainer) -> float | None:
    scale = trainer.runner.gate.loss_scale
    return float(scale.value) if scale is not None else None
