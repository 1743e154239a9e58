"""The trainer: one line, one screen, no callbacks.

batch -> forward -> backward -> measure -> gate -> clip -> step -> record. The gate of this version is
open: every update is applied, finite or not, so that the numbers are those of a bare loop; what is not
finite is measured, recorded and ends the run as ``diverged``, which is a result and not a crash.
"""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn

from hpcstab.config import RunConfig
from hpcstab.judgement import judge
from hpcstab.rundir import RunDir
from hpcstab.seeds import keyed_seed
from hpcstab.task import Batch, Task
from hpcstab.training.batches import TrainingBatches, to_device
from hpcstab.training.cadence import Cadence
from hpcstab.training.context import TrainingContext
from hpcstab.training.evaluation import evaluate
from hpcstab.training.failure import FailureWatch
from hpcstab.training.measure import (
    ModuleProbe,
    clip_scale,
    nonfinite_names,
    peak_memory_gib,
    scale_gradients,
    total_grad_norm,
)
from hpcstab.training.objective import Objective, check_terms
from hpcstab.training.optimizers import learning_rate, set_learning_rate
from hpcstab.training.pictures import save_samples
from hpcstab.training.precision import autocast, device_facts
from hpcstab.training.records import Records
from hpcstab.training.state import restore_state, save_state
from hpcstab.training.tensorboard import TensorBoard

TrainerState = Literal["running", "completed", "diverged", "halted", "failed"]


class Diverged(Exception):  # noqa: N818 - it is a result, not an error
    """The numbers of the run ended it."""


class Stopped(Exception):  # noqa: N818 - it is a request, not an error
    """The attempt ends at a step boundary; the run is not over."""


@dataclass(frozen=True)
class TrainingResult:
    """How an attempt ended; ``stopped`` means that a signal asked for it and the run is not over."""

    state: Literal["completed", "diverged", "halted", "stopped"]
    steps_gained: int
    reason: str


@dataclass
class Trainer:
    """Built parts of one attempt (see :func:`hpcstab.training.build.build_trainer`) and its position."""

    task: Task
    config: RunConfig
    run: RunDir
    seed: int
    device: torch.device
    network: nn.Module
    optimizer: torch.optim.Optimizer
    batches: TrainingBatches
    objective: Objective
    records: Records
    failure: FailureWatch
    cadence: Cadence
    tensorboard: TensorBoard
    stop_requested: Callable[[], str | None]
    step: int = 0
    update: int = 0

    def train(self) -> TrainingResult:
        """Train to the end, to divergence, or until a signal asks to stop; from a checkpoint where there is one."""
        self._began = time.perf_counter()
        self.records.write_task(self.task)
        restore_state(self)
        first_step = self.step
        self.records.events.write("train_start", self.step, self.update, **device_facts(self.device))
        self.records.heartbeat(now=True)
        state, reason = self._run()
        self.records.events.write("train_end", self.step, self.update, state=state, reason=reason)
        if state != "stopped":
            self.records.status(state=state, judgement=judge(self.run).as_json())
        self.records.heartbeat(now=True)
        return TrainingResult(state, self.step - first_step, reason)

    def _run(self) -> tuple[Literal["completed", "diverged", "stopped"], str]:
        first_step = self.step
        batches: Iterator[tuple[int, Batch]] = self.batches.from_step(first_step)
        try:
            while self.step < self.cadence.total_steps:
                self._stop_if_asked()
                if self.cadence.evaluates_before(self.step):
                    self._evaluate()
                if self.cadence.saves_before(self.step) and self.step > first_step:
                    self._save()
                started = time.perf_counter()
                epoch, batch = next(batches)
                self._train_step(batch, epoch, started)
                self.records.heartbeat()
            self._evaluate()
            self._save()
        except Stopped as stop:
            return "stopped", str(stop)
        except Diverged as divergence:
            self.records.events.write("diverged", self.step, self.update, reason=str(divergence))
            save_state(self)
            return "diverged", str(divergence)
        save_samples(self.run, self.task, self.network, self._context(epoch=0))
        return "completed", f"{self.cadence.total_steps} steps"

    def _stop_if_asked(self) -> None:
        """End at this step boundary where a signal asks for it, with the state on disk."""
        signal_name = self.stop_requested()
        if signal_name:
            self.records.events.write("stop_requested", self.step, self.update, signal=signal_name)
            self._save()
            raise Stopped(signal_name)

    def _save(self) -> None:
        if max(self.run.attempt_numbers(), default=0) > self.records.attempt:
            self.records.events.write("superseded", self.step, self.update)
            raise Stopped("superseded")  # the checkpoints belong to the newer attempt
        self._check_state()
        save_state(self)

    def _train_step(self, batch: Batch, epoch: int, started: float) -> None:
        torch.manual_seed(keyed_seed(self.seed, "step", self.step))  # dropout and the like: the same on a resume
        context = self._context(epoch)
        with autocast(self.config.precision, self.device):
            terms = dict(self.task.loss_terms(self.network, to_device(batch, self.device), context))
        if self.step == 0:
            check_terms(terms, self.task.loss_term_names)
        loss = self.objective.total(terms, self.step)
        self.optimizer.zero_grad(set_to_none=True)
        loss.backward()  # type: ignore[no-untyped-call]
        grad_norm = total_grad_norm(self.network.parameters())
        probe = self._probe() if self.cadence.probes_at(self.step) else None
        scale = clip_scale(grad_norm, self.config.stability.clip_grad_norm)
        if self.config.stability.clip_grad_norm is not None:
            scale_gradients(self.network.parameters(), scale)
        lr = learning_rate(
            self.update,
            self.config.optimizer.lr,
            self.config.scheduler,
            self.cadence.warmup_steps,
            self.cadence.total_steps,
        )
        set_learning_rate(self.optimizer, lr)
        self.optimizer.step()
        row = self._row(loss, grad_norm, scale, terms, context)
        self._record(row | {"epoch": epoch, "lr": lr, "step_time_s": time.perf_counter() - started}, probe)

    def _row(
        self, loss: Tensor, grad_norm: Tensor, scale: Tensor, terms: dict[str, Tensor], context: TrainingContext
    ) -> dict[str, Any]:
        """All signals of the step in one read from the device."""
        missing = set(self.task.diagnostics) ^ set(context.diagnostics)
        if missing:
            raise ValueError(f"the task declares and records different diagnostics: {', '.join(sorted(missing))}")
        named: dict[str, Tensor] = {"loss": loss, "grad_norm": grad_norm, "clip_scale": scale}
        named |= {f"loss_{name}": term for name, term in terms.items()}
        named |= {f"diag_{name}": context.diagnostics[name] for name in self.task.diagnostics}
        signals = (*named.values(), *context.counts())
        values = torch.stack([signal.detach().double() for signal in signals]).tolist()
        row: dict[str, Any] = dict(zip(named, values[:-2], strict=True))
        row |= {"num_masked": int(values[-2]), "num_limited": int(values[-1])}
        return row | {
            "loss_finite": math.isfinite(row["loss"]),
            "grad_finite": math.isfinite(row["grad_norm"]),
        }

    def _record(self, row: dict[str, Any], probe: ModuleProbe | None) -> None:
        position = {"step": self.step, "update": self.update, "attempt": self.records.attempt}
        row |= position | {
            "time_s": time.perf_counter() - self._began,
            "peak_mem_gib": peak_memory_gib(self.device),
            "outcome": "applied",
        }
        self.records.metrics.append(row)
        if probe is not None:
            for module, grad_norm, update_norm in probe.after_step():
                norms = {"module": module, "grad_norm": grad_norm, "update_norm": update_norm}
                self.records.probes.append(position | norms)
        self.tensorboard.row(self.step, row)
        self.step += 1
        self.update += 1
        last = {name: row[name] for name in ("loss", "grad_norm", "lr", "step_time_s")}
        self.records.status(step=self.step, update=self.update, last=last)
        verdict = self.failure.see(row, self.records)
        if verdict:
            raise Diverged(verdict)

    def _evaluate(self) -> None:
        self._check_state()
        context = self._context(epoch=0)
        with autocast(self.config.precision, self.device):
            evaluation = evaluate(self.task, self.network, context, self.records.heartbeat)
        for index in evaluation.failed:
            self.records.events.write("eval_batch_failed", self.step, self.update, batch=index, split="validation")
        if evaluation.empty:
            self.records.events.write("eval_empty", self.step, self.update, split="validation")
            if self.step == 0:
                return  # nothing was trained yet: step 0 shows its own loss, and the steps decide
            self.records.nonfinite(self.step, what="evaluation")
            raise Diverged(f"evaluation at step {self.step}: none of {evaluation.num_batches} batches was valid")
        counts = {
            "num_batches": evaluation.num_batches,
            "num_failed_batches": len(evaluation.failed),
            "seconds": evaluation.seconds,
        }
        position = {"step": self.step, "update": self.update, "attempt": self.records.attempt}
        self.records.evals.append(position | counts | {"split": "validation", "weights": "raw"} | evaluation.metrics)
        self.tensorboard.evaluation(self.step, evaluation.metrics)
        self.records.status(eval=evaluation.metrics)
        self.records.better(self.step, evaluation.metrics)
        self.records.heartbeat(now=True)

    def _check_state(self) -> None:
        """Non-finite parameters end the run; non-finite buffers alone are an event, and it goes on."""
        buffers = nonfinite_names(self.network.named_buffers())
        if buffers:
            self.records.events.write("buffers_nonfinite", self.step, self.update, names=buffers[:20])
            self.records.nonfinite(self.step, what="buffers")
        parameters = nonfinite_names(self.network.named_parameters())
        if parameters:
            reason = f"{len(parameters)} parameter tensors non-finite, first {parameters[0]}"
            self.records.events.write("state_nonfinite", self.step, self.update, reason=reason, names=parameters[:20])
            self.records.nonfinite(self.step, what="parameters")
            raise Diverged(reason)

    def _probe(self) -> ModuleProbe:
        probe = ModuleProbe(self.network)
        probe.before_step()
        return probe

    def _context(self, epoch: int) -> TrainingContext:
        return TrainingContext(seed=self.seed, step=self.step, epoch=epoch, device=self.device)
