"""The weighted sum of the task's loss terms: weights and phases are the trainer's."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from torch import Tensor

from hpcstab.config import LossesConfig
from hpcstab.errors import ConfigError
from hpcstab.stability.phases import phase_factor, phases_factor


class Objective:
    """Weights of the terms by step, and their sum.

    Attributes:
        nonfinite: terms that were not finite in some step of this run.
    """

    def __init__(self, config: LossesConfig, steps_per_epoch: int, duration_factor: float) -> None:
        self._base: dict[str, float] = config.weights.model_dump()
        self._keeps_zero = config.multiply_zero_weights
        self._phases = {
            term: [
                (
                    phase.start.in_steps(steps_per_epoch, duration_factor),
                    phase.ramp.in_steps(steps_per_epoch, duration_factor),
                    phase.to,
                )
                for phase in phases
            ]
            for term, phases in config.phases.items()
        }
        self.ramps_again = config.on_bad_term == "ramp_again"
        self.ramp_steps = config.bad_term_ramp.in_steps(steps_per_epoch, duration_factor)
        self._restarts: dict[str, int] = {}
        self.nonfinite: set[str] = set()

    def weight(self, term: str, step: int) -> float:
        """The weight of a term at a step, phases and a later ramp included."""
        factor = phases_factor(step, self._phases[term]) if term in self._phases else 1.0
        if term in self._restarts:
            factor *= phase_factor(step, self._restarts[term], self.ramp_steps)
        return self._base[term] * factor

    def weights(self, step: int) -> dict[str, float]:
        """The weight of every term at a step."""
        return {term: self.weight(term, step) for term in self._base}

    def unchanged_since(self, step: int) -> int:
        """The step from which on the weights are those of ``step``; within a ramp it is ``step`` itself."""
        weighted = [phases for term, phases in self._phases.items() if self._base[term] != 0.0]
        ramps = [(start, ramp) for phases in weighted for start, ramp, _ in phases]
        ramps += [(start, self.ramp_steps) for start in self._restarts.values()]
        return max((min(step, start + max(ramp, 1) - 1) for start, ramp in ramps if start <= step), default=0)

    def ramp_again(self, terms: Iterable[str], step: int) -> None:
        """Off before ``step``, then up again from there over the configured length."""
        self._restarts |= dict.fromkeys(terms, step)

    def state_dict(self) -> dict[str, Any]:
        return {"restarts": dict(self._restarts), "nonfinite": sorted(self.nonfinite)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._restarts = dict(state["restarts"])
        self.nonfinite = set(state["nonfinite"])

    def total(self, terms: Mapping[str, Tensor], step: int) -> Tensor:
        """Weighted sum of the terms; a term of weight zero is left out unless the config keeps 0 x inf."""
        weighted = [(self.weight(name, step), term) for name, term in terms.items()]
        # times 1 is the same to the bit, and two kernels
        parts = [
            term if weight == 1.0 else weight * term for weight, term in weighted if self._keeps_zero or weight != 0.0
        ]
        if not parts:
            raise ConfigError(f"losses.weights: every term has weight zero at step {step}; nothing is trained")
        total = parts[0]
        for part in parts[1:]:
            total = total + part
        return total


def check_terms(terms: Mapping[str, Tensor], declared: tuple[str, ...]) -> None:
    """Refuse terms that the trainer cannot weigh; called on the first batch.

    Raises:
        ConfigError: other names than declared, a term that is not a scalar, a sum without a gradient.
    """
    if tuple(terms) != declared:
        raise ConfigError(
            f"the task's loss_terms returned {', '.join(terms) or 'nothing'}; it declares {', '.join(declared)}"
        )
    for name, term in terms.items():
        if term.ndim != 0:
            raise ConfigError(f"loss term '{name}' has shape {tuple(term.shape)}; a term is a scalar, reduce it")
    if not any(term.requires_grad for term in terms.values()):
        raise ConfigError("no loss term depends on the parameters of the network; is something detached?")
