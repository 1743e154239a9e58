"""One training: its built parts and its position. Everything else in this room works on it."""

from __future__ import annotations

from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import torch
from torch import nn

from hpcstab.config import RunConfig
from hpcstab.rundir import RunDir
from hpcstab.stability.gate.gate import LAG
from hpcstab.stability.gate.held import HeldBatches
from hpcstab.task import Task
from hpcstab.training.batches import StepBatch, TrainingBatches
from hpcstab.training.batchnorm_care import BatchNormCare
from hpcstab.training.cadence import Cadence
from hpcstab.training.failure import FailureWatch
from hpcstab.training.guarding import Guarding
from hpcstab.training.optimizers import Optimizers, learning_rate
from hpcstab.training.ranks import Ranks
from hpcstab.training.records import Records
from hpcstab.training.saver import Saver
from hpcstab.training.step import Pending, Signals, StepRunner
from hpcstab.training.tensorboard import TensorBoard


@dataclass
class Training:
    """Built parts of one attempt (see :func:`hpcstab.training.build.build_trainer`) and its position.

    Attributes:
        step: the next batch position.
        update: applied updates among the steps that were read.
        saved_at: the position of the checkpoint that was last begun or put back, where it has its evaluation.
        in_flight: steps that were given to the device and not read yet, oldest first.
        items: the batches from ``step`` on, and those of the steps in flight to go back to.
        began: when the attempt did, by ``time.perf_counter``.
        stop_is_read: whether a step that was read has said that some rank was asked to stop.
    """

    task: Task
    config: RunConfig
    run: RunDir
    seed: int
    device: torch.device
    network: nn.Module
    optimizer: Optimizers
    runner: StepRunner
    batches: TrainingBatches
    batchnorm: BatchNormCare
    records: Records
    failure: FailureWatch
    cadence: Cadence
    saver: Saver
    tensorboard: TensorBoard
    stop_requested: Callable[[], str | None]
    ranks: Ranks
    guarding: Guarding | None = None
    lag: int = LAG
    saved_at: int | None = None
    stop_is_read: bool = False
    step: int = 0
    update: int = 0
    in_flight: deque[Pending] = field(default_factory=deque)
    items: HeldBatches[StepBatch] = field(init=False)
    began: float = 0.0

    def start_batches(self) -> None:
        """Read batches from the position ``step`` on."""
        assert self.lag < self.runner.gate.buffers.size, "the gate's ring of buffers must reach back over the lag"
        self.items = HeldBatches(self.batches.from_step(self.step), self.lag + 1)

    def launch(self, item: StepBatch, started: float) -> Pending:
        """Give a step to the device; the learning rate assumes that all steps before it are applied.

        A closed gate runs a step again where that was wrong; loops with other gates count steps.
        """
        tick = self.update + len(self.in_flight) if self.runner.gate.mode == "closed" else item.step
        lr = learning_rate(
            tick, self.config.optimizer.lr, self.config.scheduler, self.cadence.warmup_steps, self.cadence.total_steps
        )
        if self.guarding is not None:
            lr *= self.guarding.ladder.lr_factor(self.update + len(self.in_flight))
            self.guarding.set_thresholds(self.runner.gate, tick, self.runner.objective.unchanged_since(item.step))
        pending = self.runner.launch(
            item,
            lr,
            probes=self.cadence.probes_at(item.step),
            checks=self.cadence.checks_after(item.step),
            checks_statistics=self.cadence.checks_statistics_after(item.step),
            stop_asked=self.ranks.count > 1 and self.stop_requested() is not None,
        )
        pending.started = started
        return pending

    def read(self, pending: Pending) -> Signals:
        """The signals of a step, and whether some rank was asked to stop; waits for the device where it is not done."""
        signals = pending.read()
        self.stop_is_read |= signals.stop_asked
        return signals
