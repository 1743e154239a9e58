"""One training step on the device: forward, backward, gate. What it says is read later, by the trainer."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from hpcstab.config.common import PrecisionConfig
from hpcstab.seeds import keyed_seed
from hpcstab.stability.batchnorm.running_statistics import Findings, RunningStatistics
from hpcstab.stability.deferred import Deferred, stacked
from hpcstab.stability.gate.clipping import clip_scale_of
from hpcstab.stability.gate.decision import GateFigures
from hpcstab.stability.gate.gate import Gate
from hpcstab.stability.gate.retrial import reason_of
from hpcstab.stability.guards.health import HealthProbe, Readings
from hpcstab.stability.random_state import seed_all
from hpcstab.task import Batch, Task
from hpcstab.training.batches import StepBatch, micro_batches, to_device
from hpcstab.training.context import TrainingContext
from hpcstab.training.measure import ModuleNorms, ModuleProbe, finite_flag
from hpcstab.training.objective import Objective, check_terms
from hpcstab.training.optimizers import Optimizers
from hpcstab.training.precision import autocast
from hpcstab.training.ranks import ALONE, Ranks
from hpcstab.training.terms import TermNorms, bad_terms, measure_terms

_FLAGS = ("state_finite", "stop_asked")
_COUNTS = ("num_masked", "num_limited")


@dataclass(frozen=True)
class Signals:
    """What a step said, read from the device: ``figures`` are columns of metrics.csv, the rest is for the trainer.

    ``state_finite`` is True where the state was not looked at.
    """

    figures: Mapping[str, float]
    bad: bool
    refused: bool
    buffers_finite: bool
    state_finite: bool
    stop_asked: bool

    @property
    def reason(self) -> str:
        """Why the step was bad, as far as its signals tell."""
        return reason_of(self.figures["loss"], self.figures["grad_norm"], buffers_finite=self.buffers_finite)


@dataclass
class Pending:
    """A step that was given to the device and not read yet.

    ``names`` of all its figures, ``gate_names`` of those that :class:`GateFigures` reads; ``refuses``: a bad one.
    """

    item: StepBatch
    lr: float
    names: tuple[str, ...]
    deferred: Deferred
    gate_names: tuple[str, ...]
    refuses: bool
    norms: ModuleNorms | None
    term_norms: TermNorms | None
    statistics: Findings | None
    readings: Readings | None
    started: float = 0.0
    seconds: float = 0.0

    @property
    def step(self) -> int:
        return self.item.step

    def read(self) -> Signals:
        """The signals; waits for the device where it is not done."""
        values = _of_all_ranks(self.names, self.deferred.read())
        flags = {name: bool(values.pop(name)) for name in _FLAGS}
        gate = GateFigures.of([values.pop(name) for name in self.gate_names])
        of_gate = {"loss": gate.loss, "grad_norm": gate.grad_norm, "clip_scale": clip_scale_of(gate.clip_divisor)}
        figures = of_gate | {name: _typed(name, value) for name, value in values.items()}
        refused = gate.bad and self.refuses
        return Signals(figures, gate.bad, refused, gate.buffers_finite, **flags)


@dataclass
class StepRunner:
    """Gives steps to the device."""

    task: Task
    network: nn.Module
    optimizer: Optimizers
    gate: Gate
    objective: Objective
    statistics: RunningStatistics
    precision: PrecisionConfig
    num_micro_batches: int
    device: torch.device
    seed: int
    measures_health: bool = False
    ranks: Ranks = ALONE

    def __post_init__(self) -> None:
        # 0 and 1 on the device: a step that makes them anew waits for a copy
        self._constants = (torch.zeros((), device=self.device), torch.ones((), device=self.device))

    def launch(
        self,
        item: StepBatch,
        lr: float,
        *,
        probes: bool,
        checks: bool,
        checks_statistics: bool = False,
        stop_asked: bool = False,
    ) -> Pending:
        """Forward, backward, gate; nothing here waits for the device.

        Args:
            probes: measure gradient and update norm of every module, and the gradient of every loss term.
            checks: look at parameters, buffers and optimizer state after the step; for guards, measure its health.
            checks_statistics: look at the running statistics after the step, and repair them where that is configured.
            stop_asked: this rank was asked to stop; all ranks read it with the signals of the step.
        """
        self.seed_step(item.step)
        self.optimizer.set_learning_rate(lr)
        self.optimizer.zero_grad()
        self.gate.begin(item.step)
        if self.ranks.count > 1:
            self.ranks.take_buffers_of_first(self.gate.buffers.current())
        loss, figures, term_norms = self.gradients(item, probes=probes)
        if self.ranks.count > 1:
            self.ranks.average_gradients(self._parameters())
        probe = self._probe() if probes else None
        health = self._health_probe() if checks and self.measures_health else None
        decision = self.gate.step(loss)
        norms = probe.after_step() if probe is not None else None
        readings = health.after_step(item.step) if health is not None else None
        statistics = self.statistics.check(decision.refused) if checks_statistics else None
        state_finite = finite_flag(self.state_tensors()) if checks else self._constants[1]
        flags = {"state_finite": state_finite, "stop_asked": self._constants[stop_asked]}
        of_gate = dict(zip(decision.names, decision.figures.unbind(), strict=True))
        figures = of_gate | {"loss": loss} | flags | figures
        values = self.ranks.gather(stacked(list(figures.values()))).flatten()
        said = tuple(figures), Deferred(values), decision.names, decision.refuses
        return Pending(item, lr, *said, norms, term_norms, statistics, readings)

    def seed_step(self, step: int) -> None:
        """Dropout and the like draw the same whenever a step runs: on a resume, after a refusal, in a replay."""
        rank = (self.ranks.rank,) if self.ranks.rank else ()
        seed_all(keyed_seed(self.seed, "step", step, *rank))

    def state_tensors(self) -> dict[str, Tensor]:
        """Parameters, watched buffers, optimizer state and moving average by name: all that must stay finite."""
        named: dict[str, Tensor] = dict(self.network.named_parameters())
        named |= self.gate.buffers.watched()
        names: dict[Tensor, str] = {parameter: name for name, parameter in self.network.named_parameters()}
        for parameter, values in self.optimizer.state.items():
            named |= {f"optimizer.{names[parameter]}.{key}": value for key, value in values.items()}
        if self.gate.ema is not None:
            named |= {f"ema.{name}": average for name, average in self.gate.ema.tensors()}
        return {
            name: value.detach()
            for name, value in named.items()
            if isinstance(value, Tensor) and value.is_floating_point()
        }

    def _probe(self) -> ModuleProbe:
        return ModuleProbe(self.network, self.gate.loss_scale.value if self.gate.loss_scale else None)

    def look_at(self, item: StepBatch) -> None:
        """The step's forward pass alone, in the network's present mode: nothing but buffers and generators change."""
        self.seed_step(item.step)
        with torch.no_grad():
            for index, part in enumerate(micro_batches(item.batch, self.num_micro_batches)):
                self._terms(part, item, index)

    def bad_terms(self, item: StepBatch) -> dict[str, str]:
        """Loss terms of a refused step that went bad, and whether by their ``value`` or their ``gradient``.

        The step's forward pass runs again for it and leaves nothing behind; call it after the gate's release.
        """
        self.seed_step(item.step)
        found: dict[str, str] = {}
        for index, part in enumerate(micro_batches(item.batch, self.num_micro_batches)):
            terms, _ = self._terms(part, item, index)
            found = bad_terms(terms, self.objective.weights(item.step), self.gate, self._parameters()) | found
        self.gate.buffers.put_back(item.step)
        return found

    def _parameters(self) -> list[Tensor]:
        return [parameter for parameter in self.network.parameters() if parameter.requires_grad]

    def _health_probe(self) -> HealthProbe:
        fp16 = self.precision.dtype == "fp16"
        return HealthProbe(self.network, self.gate, self.num_micro_batches, fp16=fp16)

    def gradients(self, item: StepBatch, *, probes: bool = False) -> tuple[Tensor, dict[str, Tensor], TermNorms | None]:
        """(loss, terms, diagnostics and counts) over all micro-batches; gradients are those of their mean loss."""
        parts = micro_batches(item.batch, self.num_micro_batches)
        losses, figures, norms = [], [], None
        for index, part in enumerate(parts):
            terms, context = self._terms(part, item, index)
            if item.step == 0:
                check_terms(terms, self.task.loss_term_names)
            loss = self.objective.total(terms, item.step)
            loss = loss / len(parts) if len(parts) > 1 else loss
            if probes and index == 0:
                norms = measure_terms(terms, self.objective.weights(item.step), self.gate, self._parameters())
            self.gate.scaled(loss).backward()  # type: ignore[no-untyped-call]
            losses.append(loss)
            figures.append(self._figures(terms, context))
        if len(parts) == 1:
            return losses[0], figures[0], norms
        combined = {name: _combined(name, [each[name] for each in figures]) for name in figures[0]}
        return torch.stack(losses).sum(), combined, norms

    def _terms(self, batch: Batch, item: StepBatch, micro: int) -> tuple[dict[str, Tensor], TrainingContext]:
        context = TrainingContext(self.seed, item.step, item.epoch, self.device, micro, self.ranks.rank)
        with autocast(self.precision, self.device):
            return dict(self.task.loss_terms(self.network, to_device(batch, self.device), context)), context

    def _figures(self, terms: Mapping[str, Tensor], context: TrainingContext) -> dict[str, Tensor]:
        missing = set(self.task.diagnostics) ^ set(context.diagnostics)
        if missing:
            raise ValueError(f"the task declares and records different diagnostics: {', '.join(sorted(missing))}")
        figures = {f"loss_{name}": term.detach() for name, term in terms.items()}
        figures |= {f"diag_{name}": context.diagnostics[name] for name in self.task.diagnostics}
        counts = (self._constants[0] if count is None else count for count in context.counts())
        return figures | dict(zip(_COUNTS, counts, strict=True))


def _of_all_ranks(names: tuple[str, ...], values: list[float]) -> dict[str, float]:
    """One figure each from those of all ranks, which stand one rank after the other."""
    of_each = [values[index :: len(names)] for index in range(len(names))]
    return {name: _merged(name, of_each[index]) for index, name in enumerate(names)}


def _merged(name: str, values: list[float]) -> float:
    """Means of losses, sums of counts, the worst of everything else; NaN is worse than any number."""
    if len(values) == 1:
        return values[0]
    if name == "state_finite":
        return min(values)
    if name in _COUNTS:
        return sum(values)
    if name == "loss" or name.startswith("loss_"):
        return sum(values) / len(values)
    return math.nan if any(map(math.isnan, values)) else max(values)


def _combined(name: str, values: list[Tensor]) -> Tensor:
    """One figure of the step from those of its micro-batches: means of losses, sums of counts, largest diagnostics."""
    parts = torch.stack([value.double() for value in values])
    if name in _COUNTS:
        return parts.sum()
    return parts.amax() if name.startswith("diag_") else parts.mean()


def _typed(name: str, value: float) -> float:
    return int(value) if name in _COUNTS else value
