"""The checkpoints of a run as its files label them: no tensor is read, and loading torch is not needed.

The label is what the trainer found when it saved. Whether the bytes are still those is the doctor's to say; what can be
seen for nothing is a state file of another size than the manifest vouches for.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.rundir import RunDir, bytes_below, read_json

_NAME = re.compile(r"step_(\d{8,})(_FIXED\w*)?")


@dataclass(frozen=True)
class CheckpointHealth:
    """One checkpoint. ``sick``: what is wrong with it, in words; ``roles``: last, best, healthy, as the index says.

    ``scanned``: the doctor has read it; else ``is_healthy`` is the label of its save.
    """

    name: str
    step: int
    is_healthy: bool
    sick: str
    roles: tuple[str, ...]
    num_bytes: int
    is_fixed: bool = False
    scanned: bool = False

    def as_json(self) -> dict[str, Any]:
        """For programs."""
        return {**asdict(self), "roles": list(self.roles)}

    def with_diagnosis(self, found: Mapping[str, Any]) -> CheckpointHealth:
        """As the doctor found it: ``found`` is one entry of ``hpcstab doctor --json``."""
        sick = [entry for entry in found["findings"] if entry["severity"] != "note"]
        more = f" and {len(sick) - 1} more" if len(sick) > 1 else ""
        text = f"{_finding(sick[0])}{more}" if sick else ""
        healthy = found["verdict"] == "healthy" and (self.is_healthy or not self.sick)
        return replace(self, is_healthy=healthy, sick=text or self.sick, scanned=True)


def checkpoints_of(run: RunDir) -> list[CheckpointHealth]:
    """Those of a run, by step; what cannot be read is sick."""
    try:
        index = read_json(run.checkpoints / "index.json") or {}
    except RunError:
        index = {}
    found = [(match, path) for path in run.checkpoints.glob("step_*") if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda entry: (int(entry[0][1]), entry[1].name))
    return [_health(path, int(match[1]), bool(match[2]), index) for match, path in found if path.is_dir()]


def _health(folder: Path, step: int, is_fixed: bool, index: Mapping[str, Any]) -> CheckpointHealth:
    sick = ""
    try:
        manifest = read_json(folder / "manifest.json")
        if manifest is None:
            sick = "has no manifest"
        elif not manifest.get("healthy"):
            sick = _names(manifest.get("nonfinite")) or "labelled sick when it was saved"
        elif (folder / "state.pt").stat().st_size != manifest.get("state_bytes"):
            sick = "its state file is not as long as it was written"
    except (RunError, OSError) as error:
        sick = str(error)
    return CheckpointHealth(
        folder.name, step, not sick, sick, _roles(folder.name, index), bytes_below(folder), is_fixed
    )


def _roles(name: str, index: Mapping[str, Any]) -> tuple[str, ...]:
    def names(value: object) -> bool:
        values = value if isinstance(value, list) else [value]
        return any(each == name or (isinstance(each, Mapping) and name in each.values()) for each in values)

    return tuple(role for role in ("last", "best", "healthy") if names(index.get(role)))


def _names(names: object) -> str:
    if not isinstance(names, list) or not names:
        return ""
    more = f" and {len(names) - 1} more" if len(names) > 1 else ""
    return f"not finite: {names[0]}{more}"


def _finding(finding: Mapping[str, Any]) -> str:
    name = f"{finding['name']}: " if finding.get("name") else ""
    return f"{name}{finding['text']}"
