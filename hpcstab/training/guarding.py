"""The guards of a training and their ladder: built from the config, thresholds on the device, a part of the state."""

from __future__ import annotations

import math
from dataclasses import dataclass, field
from typing import Any

from hpcstab.config.guards import GuardsConfig
from hpcstab.stability.gate.gate import LAG, Gate
from hpcstab.stability.guards.drift import DriftGuard
from hpcstab.stability.guards.guards import DELAY, Guard, Guards, StreakGuard, Verdict
from hpcstab.stability.guards.headroom import HeadroomGuard
from hpcstab.stability.guards.ladder import Ladder
from hpcstab.stability.guards.spikes import SpikeGuard
from hpcstab.stability.guards.stalled import StalledGuard


@dataclass
class Guarding:
    """Guards and ladder of one run."""

    guards: Guards
    ladder: Ladder
    stalled: StalledGuard | None
    _set: tuple[float, float] = field(default=(math.inf, math.inf))

    def set_thresholds(self, gate: Gate, index: int, since: int) -> None:
        """Bring the thresholds of the update ``index`` to the device, where they differ from those there.

        ``since``: the step from which on the weights of the loss terms are those of this update.
        """
        thresholds = self.guards.thresholds(index, since)
        if thresholds != self._set:
            gate.limit(loss=thresholds[0], grad_norm=thresholds[1])
            self._set = thresholds

    def state_dict(self) -> dict[str, Any]:
        return {"guards": self.guards.state_dict(), "ladder": self.ladder.state_dict()}

    def load_state_dict(self, state: dict[str, Any]) -> None:
        self.guards.load_state_dict(state["guards"])
        self.ladder.load_state_dict(state["ladder"])


def build_guarding(config: GuardsConfig | None) -> Guarding | None:
    """Guards and ladder of a config; None for none."""
    if config is None:
        return None
    assert DELAY >= LAG, "a verdict must not depend on how late the host reads"
    stalled = StalledGuard(**_numbers(config.stalled)) if config.stalled else None
    candidates: dict[str, Guard | None] = {
        "stalled": stalled,
        "batchnorm": DriftGuard(**_numbers(config.batchnorm)) if config.batchnorm else None,
        "headroom": HeadroomGuard(**_numbers(config.headroom)) if config.headroom else None,
    }
    guards = Guards(
        StreakGuard(config.streak.max_skips),
        SpikeGuard(**config.loss_spike.model_dump()) if config.loss_spike else None,
        SpikeGuard(**config.norm_spike.model_dump()) if config.norm_spike else None,
        {name: guard for name, guard in candidates.items() if guard is not None},
    )
    return Guarding(guards, Ladder(**config.ladder.model_dump()), stalled)


def _numbers(section: Any) -> dict[str, Any]:
    """The arguments of a guard from its section of the config."""
    values: dict[str, Any] = section.model_dump()
    return values | {"verdict": Verdict[section.verdict.upper()]}
