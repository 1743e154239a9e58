"""The config of a run folder or a capsule, which may be older than this code.

A run that is queued again after an update, or replayed a year later, lacks the keys that are new since. It is completed
with what its version did. A base gets no such help: it states every value.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcstab.config.yaml_file import read_yaml_mapping

RENAMED: Mapping[str, Mapping[str, str]] = {"xray2ctpa": {"data.path": "data.folder"}}
"""By model: keys by the name that they had."""
ADDED: Mapping[str | None, Mapping[str, Any]] = {
    None: {"stability.guards.ladder.recover_after": 0},
    "xray2ctpa": {"network.samples_averaged": 1},
}
"""By model, None for all: keys that are new since there are run folders, and the value that is what was done before."""


def read_run_config(path: Path) -> dict[str, Any]:
    """The values of a run's config.yaml, ``model`` among them, with the keys that its version did not have."""
    values = read_yaml_mapping(path)
    return completed(str(values.get("model")), values)


def completed(model: str, recorded: Mapping[str, Any]) -> dict[str, Any]:
    """A config of ``model`` as it was recorded, with the keys that its version did not have."""
    values: dict[str, Any] = copy.deepcopy(dict(recorded))
    for before, key in RENAMED.get(model, {}).items():
        section, name = _place(values, before)
        if section is not None and name in section:
            _set(values, key, section.pop(name))
    for key, value in {**ADDED[None], **ADDED.get(model, {})}.items():
        _set(values, key, value)
    return values


def _set(values: dict[str, Any], key: str, value: Any) -> None:
    """Where the section is there (guards may be switched off as a whole) and has no such key."""
    section, name = _place(values, key)
    if section is not None:
        section.setdefault(name, value)


def _place(values: dict[str, Any], key: str) -> tuple[dict[str, Any] | None, str]:
    """The section that a dotted key stands in, and its name there."""
    *sections, name = key.split(".")
    section: Any = values
    for part in sections:
        section = section.get(part) if isinstance(section, dict) else None
    return (section if isinstance(section, dict) else None), name
