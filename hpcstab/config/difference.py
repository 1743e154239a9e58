"""What differs between variants, and which fix made it differ."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from hpcstab.config.experiment import Experiment
from hpcstab.config.resolve import resolve
from hpcstab.config.section import leaf_keys


@dataclass(frozen=True)
class Difference:
    """One key that the variants do not share.

    ``values`` and ``set_by`` follow the order of the variants; ``set_by`` is the fix that set the value
    (the later in YAML order wins), None where the base did.
    """

    key: str
    values: tuple[Any, ...]
    set_by: tuple[str | None, ...]


def differences(experiment: Experiment, variants: list[str], scale: str) -> list[Difference]:
    """Keys whose values differ between the variants, in the order of the config.

    Where a section is null in one variant and there in another, its keys are compared; those of null are None.
    """
    runs = [resolve(experiment, variant, scale) for variant in variants]
    columns = [dict(leaf_keys(run.config)) for run in runs]
    rows = []
    for key in _finest(columns):
        values = tuple(column.get(key) for column in columns)
        if any(value != values[0] for value in values):
            set_by = tuple(_setter(experiment, run.variant.fixes, key) for run in runs)
            rows.append(Difference(key, values, set_by))
    return rows


def overridden(experiment: Experiment, fixes: tuple[str, ...]) -> list[tuple[str, str, str]]:
    """(key, earlier fix, later fix) where two fixes of one variant set the same key: the later wins."""
    found = []
    setters: dict[str, str] = {}
    for fix in fixes:
        for key in experiment.file.fixes[fix].set:
            if key in setters:
                found.append((key, setters[key], fix))
            setters[key] = fix
    return found


def _finest(columns: list[dict[str, Any]]) -> list[str]:
    """The keys of the first variant, with those of another in place of one that is a section there."""
    keys: list[str] = []
    for key in columns[0]:
        within = [other for column in columns for other in column if other.startswith(f"{key}.")]
        keys += dict.fromkeys(within) or [key]
    return keys


def _setter(experiment: Experiment, fixes: tuple[str, ...], key: str) -> str | None:
    """The last fix that sets the key, or a section that it is in."""
    within = [key[:end] for end in range(len(key) + 1) if key[end : end + 1] in (".", "")]
    setters = [fix for fix in fixes if any(each in experiment.file.fixes[fix].set for each in within)]
    return setters[-1] if setters else None
