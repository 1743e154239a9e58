"""The trainer: one line, one bend, no callbacks.

batch -> forward -> backward -> measure -> gate -> step -> record. The gate decides on the device, in the step itself;
the host reads what a step said a few steps later and, where a step was refused, goes back to it (recovery.py).
A run that becomes non-finite ends as ``diverged``, which is a result and not a crash.
"""

from __future__ import annotations

import time
from dataclasses import dataclass
from typing import Any, Literal

from hpcstab.judgement import judge
from hpcstab.training.batchnorm import check_statistics_now, finish_repairs
from hpcstab.training.context import TrainingContext
from hpcstab.training.ends import Diverged, Halted, NothingValid, StateFault, Stopped
from hpcstab.training.evaluating import check_state, evaluate_network
from hpcstab.training.pictures import save_samples
from hpcstab.training.precision import device_facts
from hpcstab.training.ranks import shares_of, what_joins_samples
from hpcstab.training.reading import take_in
from hpcstab.training.recording import record_held, record_the_rest
from hpcstab.training.recovery import recover
from hpcstab.training.rollback import go_back_after
from hpcstab.training.saving import close_saver, finish_last_save, save_state, tell_saves
from hpcstab.training.state import restore_state
from hpcstab.training.training import Training
from hpcstab.training.verdicts import answer_empty_evaluation, answer_verdict, verdict_is_due


@dataclass(frozen=True)
class TrainingResult:
    """How an attempt ended; ``stopped`` means that a signal asked for it and the run is not over."""

    state: Literal["completed", "diverged", "halted", "stopped"]
    steps_gained: int
    reason: str


class Trainer(Training):
    """The loop over one training, from where it stands to its end."""

    def train(self) -> TrainingResult:
        """Train to the end, to divergence, or until a signal asks to stop; from a checkpoint where there is one.

        Raises:
            CheckpointError: there is no checkpoint that passes, or what had to be saved could not be.
        """
        try:
            return self._train()
        finally:
            close_saver(self)

    def _train(self) -> TrainingResult:
        self.began = time.perf_counter()
        self.records.write_task(self.task)
        self._was_restored = restore_state(self)
        self._first_step = self.step
        self.records.status(first_step=self._first_step)
        shares: dict[str, Any] = {**shares_of(self.config, self.ranks.count)}
        if self.ranks.count > 1:
            shares["joins_samples"] = what_joins_samples(self.task, self.network)
        self.records.events.write("train_start", self.step, self.update, **device_facts(self.device), **shares)
        self.records.heartbeat(now=True)
        if self.guarding is not None and not self._was_restored:
            save_state(self)  # there is always something to go back to
        state, reason = self._run()
        finish_last_save(self, state)
        self.records.events.write("train_end", self.step, self.update, state=state, reason=reason)
        if state != "stopped" and self.ranks.is_first:
            self.records.status(state=state, judgement=judge(self.run).as_json())
        self.records.heartbeat(now=True)
        return TrainingResult(state, self.step - self._first_step, reason)

    def _run(self) -> tuple[Literal["completed", "diverged", "halted", "stopped"], str]:
        self.start_batches()
        try:
            if self._was_restored and self.config.stability.batchnorm.check_after_load:
                check_statistics_now(self, "load")
            while self._advance():
                pass
        except Stopped as stop:
            return "stopped", str(stop)
        except Diverged as divergence:
            self.records.events.write("diverged", self.step, self.update, reason=str(divergence))
            save_state(self, as_evidence=True)
            return "diverged", str(divergence)
        except Halted as halt:
            self.records.events.write("halted", self.step, self.update, reason=str(halt))
            save_state(self, as_evidence=True)
            return "halted", str(halt)
        except BaseException:
            record_the_rest(self)  # what a crash is looked at for is its last rows
            raise
        if self.ranks.is_first:
            failure = save_samples(self.run, self.task, self.network, self._context())
            if failure:
                self.records.events.write("samples_failed", self.step, self.update, reason=failure)
        return "completed", f"{self.cadence.total_steps} steps"

    def _advance(self) -> bool:
        """One turn of the loop; False at the end of the training."""
        try:
            self._stop_if_asked()
            is_boundary = self._is_boundary()
            if (is_boundary or verdict_is_due(self)) and self._settle_and_answer():
                return True
            if is_boundary:
                self._evaluate_and_save()
                if self.step == self.cadence.total_steps:
                    return False
            self._train_step()
        except StateFault as fault:
            if self.guarding is None:
                raise
            record_held(self, self.in_flight)
            self.in_flight.clear()
            go_back_after(self, fault)
        except NothingValid as empty:
            if self.guarding is None:
                raise
            answer_empty_evaluation(self, empty)
        return True

    def _settle(self) -> bool:
        """Read all steps in flight; True where that moved the position, since one of them was refused."""
        before = self.step
        while self.in_flight:
            self._read_one()
        return self.step != before

    def _train_step(self) -> None:
        started = time.perf_counter()
        pending = self.launch(next(self.items), started)
        self.in_flight.append(pending)
        self.step += 1
        # a run that is going non-finite ends in the very step that its budget says
        lag = 0 if self.failure.streak else self.lag
        while len(self.in_flight) > lag:
            self._read_one()
        pending.seconds = time.perf_counter() - started
        tell_saves(self)
        self.records.heartbeat()

    def _read_one(self) -> None:
        pending = self.in_flight.popleft()
        signals = self.read(pending)
        if signals.refused and self.runner.gate.armed:
            recover(self, pending, signals)
        else:
            take_in(self, pending, signals)

    def _settle_and_answer(self) -> bool:
        """Read all steps in flight and answer the verdicts; True where that moved the position."""
        before = self.step
        self._settle()
        while verdict_is_due(self):
            answer_verdict(self)
        return self.step != before

    def _stop_if_asked(self) -> None:
        """End at this step boundary where a signal asks for it, with the state on disk."""
        signal_name = self._stop_reason()
        if signal_name:
            self._settle_and_answer()
            self.records.events.write("stop_requested", self.step, self.update, signal=signal_name)
            self._save()
            raise Stopped(signal_name)

    def _stop_reason(self) -> str | None:
        """What asks all ranks to stop; several read it with the signals of a step, so that all stop before the same."""
        if self.ranks.count == 1:
            return self.stop_requested()
        return (self.ranks.of_first(self.stop_requested()) or "another rank's signal") if self.stop_is_read else None

    def _is_boundary(self) -> bool:
        """Whether something comes before the next step that needs the state as it will stay."""
        ends = self.step == self.cadence.total_steps
        on_cadence = self.cadence.evaluates_before(self.step) or self.cadence.saves_before(self.step)
        return ends or on_cadence or self.batchnorm.is_due(self.step)

    def _evaluate_and_save(self) -> None:
        ends = self.step == self.cadence.total_steps
        self.ranks.take_buffers_of_first(self.runner.gate.buffers.current())
        finish_repairs(self, ends=ends)
        if ends or self.cadence.evaluates_before(self.step):
            evaluate_network(self)
        if ends or (self._is_worth_keeping() and self.step != self.saved_at):
            self._save()

    def _is_worth_keeping(self) -> bool:
        """On the cadence of checkpoints, and where an evaluation has just been the best; for all ranks rank 0's."""
        is_best = self.ranks.of_first((self.records["best"] or {}).get("step") == self.step)
        return self.cadence.saves_before(self.step) or (is_best and self.step > 0)

    def _save(self) -> None:
        if self.ranks.of_first(max(self.run.attempt_numbers(), default=0)) > self.records.attempt:
            self.records.events.write("superseded", self.step, self.update)
            raise Stopped("superseded")  # the checkpoints belong to the newer attempt
        check_state(self)
        save_state(self)

    def _context(self) -> TrainingContext:
        return TrainingContext(seed=self.seed, step=self.step, epoch=0, device=self.device)
