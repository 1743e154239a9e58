"""The bytes of a run folder, by what they are for."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Literal

from hpcstab.rundir import RunDir, bytes_below

Part = Literal["checkpoints", "fixed", "capsules", "samples", "logs", "records", "asides", "unlisted"]
PARTS: tuple[Part, ...] = (
    "checkpoints",  # step_00000100
    "fixed",  # step_00000100_FIXED: written by the doctor, listed by no index
    "capsules",
    "samples",
    "logs",
    "records",  # run.json, config.yaml, metrics.csv, events.jsonl, attempts, tensorboard, ...: what a run is
    "asides",  # what a killed writer left
    "unlisted",  # files that no part of hpcstab writes
)
_CHECKPOINT = re.compile(r"step_\d{8,}")
_FIXED = re.compile(r"step_\d{8,}_FIXED\w*")


def sizes_of(run: RunDir) -> dict[Part, int]:
    """Bytes a part; parts without a file have none."""
    sizes: dict[Part, int] = dict.fromkeys(PARTS, 0)
    for path, part in parts_of(run):
        sizes[part] += bytes_below(path)
    return sizes


def parts_of(run: RunDir) -> Iterator[tuple[Path, Part]]:
    """(path, part) of everything in a run folder, each file below one of the paths."""
    records = {
        run.run_json, run.config_yaml, run.task_json, run.status_json, run.metrics_csv, run.evals_csv, run.probes_csv,
        run.terms_csv, run.events_jsonl, run.attempts, run.tensorboard,
    }  # fmt: skip
    whole: dict[Path, Part] = {run.capsules: "capsules", run.samples: "samples", run.logs: "logs"}
    for path in _entries(run.path):
        if path == run.checkpoints:
            yield from ((entry, _part_of_checkpoints(entry)) for entry in _entries(path))
        elif path.is_dir() and path in (*whole, run.attempts):
            yield from (
                (entry, "asides" if is_aside(entry) else whole.get(path, "records")) for entry in _entries(path)
            )
        else:
            yield path, "records" if path in records else "asides" if is_aside(path) else "unlisted"


def is_aside(path: Path) -> bool:
    """Whether a writer put it there to rename it, and was killed."""
    return path.name.startswith(".") and path.suffix in (".aside", ".old")


def _part_of_checkpoints(path: Path) -> Part:
    if is_aside(path):
        return "asides"
    if path.name == "index.json":
        return "records"
    if _FIXED.fullmatch(path.name):
        return "fixed"
    return "checkpoints" if _CHECKPOINT.fullmatch(path.name) else "unlisted"


def _entries(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except OSError:
        return []
