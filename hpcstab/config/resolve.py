"""base + fixes + scale + overrides -> one frozen, complete config and its signature."""

from __future__ import annotations

import copy
import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from hpcstab.config.common import RunConfig
from hpcstab.config.experiment import Experiment
from hpcstab.config.guards import DEFAULT
from hpcstab.config.section import nearest, numberless_keys, validate_section
from hpcstab.config.variants import Variant, parse_variant
from hpcstab.config.yaml_file import parse_yaml_value
from hpcstab.errors import ConfigError

HORIZON = "compare.horizon_steps"


@dataclass(frozen=True)
class ResolvedRun:
    """What one run trains: everything but its seed and its place."""

    model: str
    variant: Variant
    scale: str
    overrides: tuple[tuple[str, Any], ...]
    config: RunConfig
    horizon_steps: int
    signature: str

    @property
    def label(self) -> str:
        """The variant as reports name it: ``after`` or ``after{optimizer.lr=0.001}``."""
        return self.label_from("")

    def label_from(self, beginning: str) -> str:
        """The same of a run that does not begin by itself: ``after (rerun from step 100){optimizer.lr=0.001}``."""
        changes = ",".join(f"{key}={value}" for key, value in self.overrides)
        name = f"{self.variant.name} ({beginning})" if beginning else self.variant.name
        return f"{name}{{{changes}}}" if changes else name


def resolve(
    experiment: Experiment, expression: str, scale: str, overrides: tuple[tuple[str, Any], ...] = ()
) -> ResolvedRun:
    """One variant at one scale, with the overrides of ``--set`` last.

    Raises:
        ConfigError: an unknown variant, fix, scale or key, or a value that is not allowed.
    """
    variant = parse_variant(experiment, expression)
    values = copy.deepcopy(experiment.file.base)
    origin = str(experiment.path)
    for fix in variant.fixes:
        apply_settings(values, experiment.file.fixes[fix].set, f"{origin}: fix '{fix}'")
    settings = _scale_settings(experiment, scale)
    horizon_steps = settings.pop(HORIZON, experiment.file.compare.horizon_steps)
    apply_settings(values, settings, f"{origin}: scale '{scale}'")
    if values["stability"].get("guards") == "default" and overrides:
        values["stability"]["guards"] = copy.deepcopy(DEFAULT)  # so that --set reaches into it
    apply_settings(values, dict(overrides), "--set")
    where = f"{experiment.name}@{variant.name} at scale {scale}" + (" with --set" if overrides else "")
    config = validate_section(experiment.config_class, values, where)
    return ResolvedRun(
        experiment.name, variant, scale, overrides, config, horizon_steps, signature(experiment.file.model, config)
    )


def parse_overrides(pairs: list[str]) -> tuple[tuple[str, Any], ...]:
    """``["optimizer.lr=1e-3", ...]`` as (key, value) pairs, sorted by key; a key twice is an error."""
    parsed: dict[str, Any] = {}
    for pair in pairs:
        key, equals, text = pair.partition("=")
        if not equals or not key:
            raise ConfigError(f"--set {pair!r} is not of the form key=value, e.g. optimizer.lr=1e-3")
        if not pair.isprintable():
            raise ConfigError(f"--set {pair!r} holds a control character or a newline")
        if key in parsed:
            raise ConfigError(f"--set names '{key}' twice")
        parsed[key] = parse_yaml_value(text, f"--set {key}")
    return tuple(sorted(parsed.items()))


def apply_settings(values: dict[str, Any], settings: Mapping[str, Any], origin: str) -> None:
    """Set dotted keys in place; each must be there already (a base is complete)."""
    for key, value in settings.items():
        *parents, last = key.split(".")
        section: Any = values
        for name in parents:
            section = section.get(name) if isinstance(section, dict) else None
        if not isinstance(section, dict) or last not in section:
            keys = list(_dotted(values))
            raise ConfigError(f"{origin}: unknown key '{key}'{nearest(key, keys) or '.'} Keys are those of the base")
        section[last] = copy.deepcopy(value)


def signature(model: str, config: RunConfig) -> str:
    """SHA-256 of what can change the numbers of a run, without its seed; 64 hex digits."""
    values = config.model_dump(mode="json")
    for key in numberless_keys(type(config)):
        *parents, last = key.split(".")
        section = values
        for name in parents:
            section = section[name]
        del section[last]
    text = json.dumps({"model": model, "config": values}, sort_keys=True)
    return hashlib.sha256(text.encode()).hexdigest()


def _scale_settings(experiment: Experiment, scale: str) -> dict[str, Any]:
    scales = experiment.file.scales
    if scale not in scales:
        raise ConfigError(
            f"{experiment.name}: unknown scale '{scale}'{nearest(scale, scales) or '.'} There are: {', '.join(scales)}"
        )
    return dict(scales[scale])


def _dotted(values: Mapping[str, Any], prefix: str = "") -> Iterator[str]:
    for key, value in values.items():
        yield f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from _dotted(value, f"{prefix}{key}.")
