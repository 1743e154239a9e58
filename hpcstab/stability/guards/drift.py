"""BatchNorm drift: running statistics that are not those of the batches, so that an evaluation sees another network."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from hpcstab.stability.guards.guards import Finding, Update, Verdict

MEAN_SHIFT, VAR_RATIO, LARGEST_VAR = "mean_shift", "var_ratio", "largest_var"
"""Readings ``batchnorm.<layer>.<name>`` of a health check; the largest over the channels."""


class DriftGuard:
    """Every layer's running statistics against the batch that they have just met, and against the check before.

    Args:
        max_mean_shift: of the batch mean from the running mean, in running standard deviations.
        max_var_ratio: of batch and running variance, the larger over the smaller.
        max_var_growth: of the largest running variance since the check before.
        verdict: what it asks for.
    """

    name = "batchnorm"

    def __init__(self, max_mean_shift: float, max_var_ratio: float, max_var_growth: float, verdict: Verdict) -> None:
        self._limits = {MEAN_SHIFT: max_mean_shift, VAR_RATIO: max_var_ratio, "var_growth": max_var_growth}
        self._verdict = verdict
        self._largest_var: dict[str, float] = {}

    def see(self, update: Update) -> Finding | None:
        beyond = []
        for layer, figures in by_layer(update.readings).items():
            before = self._largest_var.get(layer)
            self._largest_var[layer] = figures.pop(LARGEST_VAR)
            if before:
                figures["var_growth"] = self._largest_var[layer] / before
            # not `>`: a NaN is beyond every limit
            beyond += [(layer, name, value) for name, value in figures.items() if not value <= self._limits[name]]
        if not beyond:
            return None
        layer, name, value = max(beyond, key=lambda entry: entry[2] / self._limits[entry[1]])
        data = {"layer": layer, "what": name, "value": value, "limit": self._limits[name]}
        return Finding(self.name, self._verdict, data | {"num_layers": len({entry[0] for entry in beyond})})

    def restart(self) -> None:
        self._largest_var = {}

    def state_dict(self) -> dict[str, Any]:
        return {"largest_var": dict(self._largest_var)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._largest_var = dict(state["largest_var"])


def by_layer(readings: Mapping[str, float]) -> dict[str, dict[str, float]]:
    """layer -> name -> figure, of the readings that are BatchNorm's."""
    layers: dict[str, dict[str, float]] = {}
    for key, value in readings.items():
        if key.startswith("batchnorm."):
            layer, _, name = key.removeprefix("batchnorm.").rpartition(".")
            layers.setdefault(layer, {})[name] = value
    return layers
