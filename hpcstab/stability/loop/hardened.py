"""A loop that is not ours, with a gate in it: what it is given, what it has done, and what comes again."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from hpcstab.errors import CheckpointError, ConfigError, NumericsError
from hpcstab.metrics import EventKind
from hpcstab.stability.finite import nonfinite_names
from hpcstab.stability.gate.gate import LAG, Gate
from hpcstab.stability.gate.ranks import agreement, largest_number, rank, world_size
from hpcstab.stability.gate.retrial import REASONS, Retrial, reason_of
from hpcstab.stability.loop.capsule import write_loop_capsule
from hpcstab.stability.loop.grad_scaler import check_untouched
from hpcstab.stability.loop.journal import Journal, figures_of
from hpcstab.stability.loop.turns import Figures, Given, Schedule, Turn

T = TypeVar("T")


class Hardened:
    """A loop with a gate; see :func:`hpcstab.stability.loop.hardening.harden`.

    Attributes:
        updates: applied updates among the steps that the host has read.
        num_refused: batches that were left out (several in one where gradients accumulate).
        events: what happened, as dicts with kind, step, update and more; the logger ``hpcstab`` says it too.
        last: figures of the step that was read last, without waiting: what a loop would have called ``.item()`` for.
        gate: its ``limit(loss=..., grad_norm=...)`` makes a step with a larger one a bad one.
        ema: the moving average, or None.
    """

    def __init__(
        self,
        network: nn.Module,
        optimizers: list[torch.optim.Optimizer],
        gate: Gate,
        schedulers: list[Any],
        scaler: torch.amp.GradScaler | None,
        capsules: Path | None,
        max_refused_in_a_row: int,
    ) -> None:
        self._network = network
        self._optimizers = optimizers
        self._schedulers = schedulers
        self._scaler = scaler
        self._capsules = capsules
        self._max_refused_in_a_row = max_refused_in_a_row
        self._agree = agreement()
        self._step = 0
        self._given: list[Given] = []
        self._again: deque[Given] = deque()
        self._in_flight: deque[Turn] = deque()
        self._retrial: Retrial | None = None
        self._schedule = Schedule([], [])
        self._in_body = self._steps_now = False
        self._refused_in_a_row = 0
        self.gate = gate
        self.ema = gate.ema
        self.updates = 0
        self.num_refused = 0
        self._journal = Journal()
        self.events = self._journal.events
        self.last: Figures | None = None
        for optimizer in optimizers:
            optimizer.register_step_pre_hook(self._refuse_bypass)
            if schedulers:
                optimizer._opt_called = True  # type: ignore[attr-defined] # its first step may be a refused one

    def batches(self, loader: Iterable[T]) -> Iterator[T]:
        """The batches of a loader; after a refusal those that have to run again, too.

        What depends on the position goes inside, so that it comes again with its batch: ``for index, batch in
        hardened.batches(enumerate(loader))``. A loop that accumulates gradients by an index needs it so.

        Every step is read before it ends. A loop that is left early (``break``) leaves up to two steps unread: those
        that were refused are then left out without a second run.

        Generators are put back to what they were before a batch's body. Where the loader itself draws from the global
        generators for every batch, in this process, batches that came again keep what was drawn for them.

        Raises:
            NumericsError: nothing is left to train on: the state itself is not finite, or too many in a row refused.
        """
        self._leave()
        source = iter(loader)
        try:
            while True:
                self._read_down_to(0 if self._retrial else LAG)
                try:
                    given = self._again.popleft() if self._again else Given(next(source))
                except StopIteration:
                    self._read_down_to(0)
                    if not self._again:
                        return
                    continue
                self._begin(given)
                yield given.batch
                self._in_body = False
        except BaseException:
            self._given = []  # a body that was left has no step to come
            raise
        finally:
            self._leave()

    def step(self, loss: Tensor) -> None:
        """Clip, decide and step, in place of ``optimizer.step()``; once a batch, or once in several that accumulate.

        Args:
            loss: 0-d, as it was before any loss scale.

        Raises:
            ConfigError: called twice or outside of ``batches``; no scalar; it does not depend on the parameters.
        """
        if not self._given:
            raise ConfigError(
                "hardened.step() was called twice for one batch or outside of its loop: call it once in the body of"
                " `for batch in hardened.batches(loader)`"
            )
        check_untouched(self._scaler, self._optimizers)
        self._steps_now = True
        try:
            decision = self.gate.step(loss)
        finally:
            self._steps_now = False
        for scheduler in self._schedulers:
            scheduler.step()
        turn = Turn.of(self._step, self._given, self._schedule, decision)
        if self._retrial is not None:  # the host waits in a second run anyway, and the gradients are still there
            gradients = ((name, p.grad) for name, p in self._network.named_parameters() if p.grad is not None)
            turn.gradients_finite = not nonfinite_names(gradients)
        self._in_flight.append(turn)
        self._given = []
        self._step += 1

    def summary(self) -> str:
        """One line: steps, updates, refusals and why, capsules."""
        return self._journal.summary(self.updates, self.num_refused)

    def _begin(self, given: Given) -> None:
        given.begin()
        if not self._given:
            self.gate.begin(self._step)
            self._schedule = Schedule.take(self._optimizers, self._schedulers)
        self._given.append(given)
        self._in_body = True

    def _read_down_to(self, num_left: int) -> None:
        while len(self._in_flight) > num_left:
            turn = self._in_flight.popleft()
            self.last = figures = turn.read()
            if figures.refused and self.gate.armed:
                self._recover(turn, figures)
            else:
                self._count(turn, figures)

    def _count(self, turn: Turn, figures: Figures) -> None:
        if figures.refused:  # by a gate that only skips
            self.num_refused += 1
            self._tell("step_refused", turn.step, reason=_reason(turn, figures), **figures_of(figures))
            return
        if self._retrial is not None and self._retrial.was_repeated:
            self._tell("not_reproduced", turn.step)
        self._retrial = None
        self._refused_in_a_row = 0
        self.updates += 1

    def _recover(self, turn: Turn, figures: Figures) -> None:
        """Go back to a step that was refused and latched, and say what becomes of it."""
        self._go_back(turn)
        code = REASONS.index(_reason(turn, figures))
        reason = REASONS[largest_number(code, self._agree, self.gate.latch.device)]
        if self.gate.mode != "closed":
            self._write_capsule(turn, figures, reason)
            return  # the loop runs it again, unrefused
        is_first = self._retrial is None
        self._retrial = self._retrial or Retrial(self.gate.loss_scale)
        if self._retrial.is_for_capsule(reason):
            self._write_capsule(turn, figures, reason)
        if is_first:
            self._refuse_sick_state(turn)
        verdict = self._retrial.verdict(reason)
        if verdict == "rescaled" and self.gate.loss_scale is not None:
            self._tell("rescaled", turn.step, loss_scale=float(self.gate.loss_scale.value))
        elif verdict == "skipped":
            self._leave_out(turn, figures, reason)

    def _go_back(self, turn: Turn) -> None:
        """Everything is as it was before the step, and its batch and those behind it will come again."""
        self.gate.release(turn.step, armed=self.gate.mode == "closed")
        turn.schedule.put(self._optimizers, self._schedulers)
        behind = [given for late in self._in_flight for given in late.given] + self._given
        if self._given:  # what has accumulated since belongs to a state that was not to be
            for optimizer in self._optimizers:
                optimizer.zero_grad()
        self._in_flight.clear()
        self._given = []
        self._again.extendleft(reversed([*turn.given, *behind]))
        self._step = turn.step

    def _leave_out(self, turn: Turn, figures: Figures, reason: str) -> None:
        """Go on behind the batches of a step, as if they had never come."""
        self._retrial = None
        for _ in turn.given:
            self._again.popleft()
        for given in self._again:
            given.random = None  # their generators follow from now on
        turn.put_random()
        self._step = turn.step + 1
        self.num_refused += 1
        self._refused_in_a_row += 1
        self._tell("step_refused", turn.step, reason=reason, **figures_of(figures))
        if self._refused_in_a_row >= self._max_refused_in_a_row:
            raise NumericsError(
                f"{self._refused_in_a_row} steps in a row were refused, the last for {reason} (loss {figures.loss:.4g},"
                f" gradient norm {figures.grad_norm:.4g}); the model is finite and unchanged since: look at the data,"
                " or lower the learning rate"
            )

    def _leave(self) -> None:
        """The loop was left, or has ended: what is not read yet is read, and nothing comes again."""
        self._in_body = False
        while self._in_flight:
            turn = self._in_flight.popleft()
            self.last = figures = turn.read()
            if not (figures.refused and self.gate.armed):
                self._count(turn, figures)
                continue
            self._go_back(turn)
            self.num_refused += 1
            self._tell("step_refused", turn.step, reason=_reason(turn, figures), **figures_of(figures))
        if self._again:
            self._tell("loop_left", self._step, num_batches=len(self._again))
            self._again.clear()
        self._retrial = None

    def _refuse_sick_state(self, turn: Turn) -> None:
        sick = nonfinite_names(_state(self._network, self._optimizers))
        if largest_number(len(sick), self._agree, self.gate.latch.device):
            raise NumericsError(
                f"before step {turn.step} the state itself was not finite"
                + (f": {len(sick)} tensors, first {sick[0]}" if sick else ", on another rank")
                + "; no batch can be trained on it: go back to a checkpoint, with a lower learning rate"
            )

    def _write_capsule(self, turn: Turn, figures: Figures, reason: str) -> None:
        if self._capsules is None:
            return
        several_ranks = self._agree is not None
        folder = self._capsules / (f"step_{turn.step:08d}" + (f"_rank{rank()}" if several_ranks else ""))
        scale = self.gate.loss_scale
        facts = {
            "update": self.updates,
            "rank": rank(),
            "world_size": world_size(),
            "device": self.gate.latch.device.type,
            "reason": reason,
            "loss_scale": float(scale.value) if scale else None,
        }
        try:
            write_loop_capsule(folder, self._network, self._optimizers, turn, figures, facts)
        except CheckpointError as error:  # a disk that is full does not end the loop for it
            self._tell("capsule_left_out", turn.step, reason=str(error))
            return
        self._tell("capsule_saved", turn.step, reason=reason, capsule=str(folder))

    def _tell(self, kind: EventKind, step: int, **data: Any) -> None:
        self._journal.tell(kind, step, self.updates, **data)

    def _refuse_bypass(self, *_: Any) -> None:
        if self._in_body and not self._steps_now:
            raise ConfigError("optimizer.step() was called beside hardened.step(loss), past the gate: leave it out")


def _reason(turn: Turn, figures: Figures) -> str:
    reason = reason_of(figures.loss, figures.grad_norm, buffers_finite=figures.buffers_finite)
    return "norm_overflow" if reason == "nonfinite_gradient" and turn.gradients_finite else reason


def _state(network: nn.Module, optimizers: Sequence[torch.optim.Optimizer]) -> Iterator[tuple[str, Tensor]]:
    """(name, tensor) of parameters and of what the optimizers keep for each."""
    names: dict[Tensor, str] = {}
    for name, parameter in network.named_parameters():
        names[parameter] = name
        yield name, parameter
    for optimizer in optimizers:
        for stepped, values in optimizer.state.items():
            for key, value in values.items():
                if isinstance(value, Tensor):
                    yield f"{key} of {names[stepped]}", value
