"""Removing what is named from runs that have ended: planned first, shown, and only then done.

Never removed, whatever is asked: the newest healthy checkpoint that passes verification, the best one, and what a run
is (run.json, config, metrics, evaluations, events, attempts). A folder goes by its name first, so that no reader ever
meets half of it.
"""

from __future__ import annotations

import hashlib
import shutil
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal, cast

from hpcstab.errors import CheckpointError, ConfigError, RunError
from hpcstab.housekeeping.listing import RunSize, size_of
from hpcstab.housekeeping.sizes import parts_of
from hpcstab.rundir import RunDir, bytes_below, read_json, write_json
from hpcstab.state.checkpoints import CheckpointHealth, checkpoints_of
from hpcstab.state.ledger import ledger_path, read_ledgers, submission_folder
from hpcstab.state.rule import WrittenDown

Prunable = Literal["checkpoints", "capsules", "fixed", "asides", "submissions"]
PRUNABLE: dict[Prunable, str] = {
    "checkpoints": "all but the newest healthy one and the best",
    "capsules": "failing steps; hpcstab replay needs them",
    "fixed": "what the doctor repaired",
    "asides": "what a killed writer left",
    "submissions": "submitit's files of campaigns that have ended; not the ledger",
}


def parse_parts(names: Sequence[str]) -> list[Prunable]:
    """The parts that are named.

    Raises:
        ConfigError: there is no such part, or it is never removed.
    """
    for name in names:
        if name not in PRUNABLE:
            known = "; ".join(f"{part} ({about})" for part, about in PRUNABLE.items())
            raise ConfigError(f"--prune {name}: what can be removed is {known}")
    return [cast(Prunable, name) for name in names]


@dataclass(frozen=True)
class Removal:
    """A file or folder that would go; ``owner`` is the run or the campaign that it belongs to."""

    owner: str
    part: Prunable
    path: Path
    num_bytes: int


@dataclass
class Plan:
    """What would be removed, and what was asked for and stays, each with the reason."""

    removals: list[Removal] = field(default_factory=list)
    kept: list[tuple[str, str]] = field(default_factory=list)

    @property
    def num_bytes(self) -> int:
        return sum(removal.num_bytes for removal in self.removals)


def plan_pruning(root: Path, rows: Sequence[RunSize], parts: Sequence[Prunable]) -> Plan:
    """Look at what is there; nothing is touched."""
    plan = Plan()
    for row in rows:
        if row.is_open:
            plan.kept.append((row.run.run_id, f"is {row.state}: nothing is removed in a run that has not ended"))
            continue
        protected = _protected(row.run, plan) if {"checkpoints", "fixed"} & set(parts) else set()
        plan.removals += [
            Removal(row.run.run_id, part, path, bytes_below(path))
            for path, part in parts_of(row.run)
            if part in parts and part in PRUNABLE and path.name not in protected and _is_left(path)
        ]
    if "submissions" in parts:
        plan.removals += _submissions(root, rows, plan)
    return plan


def prune(root: Path, plan: Plan) -> Iterator[tuple[Removal, str | None]]:
    """Remove what was planned, each removal with None or why it was left; a run that began again meanwhile is left."""
    written = WrittenDown.under(root)
    for removal in plan.removals:
        run = RunDir(root / removal.owner)
        if removal.part != "submissions" and size_of(run, written, time.time()).is_open:
            yield removal, "began again meanwhile"
            continue
        yield removal, _remove(removal.path)
        if removal.path.parent == run.checkpoints:
            _forget_removed(run)


def _protected(run: RunDir, plan: Plan) -> set[str]:
    """Names of the checkpoints that stay: the newest healthy one, of the run's own and of all, and the best.

    Where none passes, all that are labelled healthy stay, for somebody to look at.
    """
    found = checkpoints_of(run)
    labelled = [each for each in reversed(found) if each.is_healthy]
    own = next((each for each in labelled if not each.is_fixed and _is_whole(run, each)), None)
    any_of = next((each for each in labelled if _is_whole(run, each)), None)
    if labelled and any_of is None:
        plan.kept.append((run.run_id, "its checkpoints are labelled healthy and none passes verification: all stay"))
        return {each.name for each in found}
    best = {each.name for each in found if "best" in each.roles}
    protected = {each.name for each in (own, any_of) if each is not None} | best
    plan.kept += [(run.run_id, f"{name} stays: the newest healthy, or the best") for name in sorted(protected)]
    return protected


def _is_whole(run: RunDir, checkpoint: CheckpointHealth) -> bool:
    """Byte for byte what was written, as far as its manifest vouches for it."""
    from hpcstab.checkpoint import read_manifest

    folder = run.checkpoints / checkpoint.name
    try:
        claimed = str(read_manifest(folder)["state_sha256"])
        with (folder / "state.pt").open("rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest() == claimed
    except (CheckpointError, OSError, KeyError):
        return False


def _is_left(path: Path) -> bool:
    """Not so where it was renamed aside to be replaced and never was: then the next start renames it back."""
    return path.suffix != ".old" or path.with_name(path.name.removeprefix(".").removesuffix(".old")).exists()


def _submissions(root: Path, rows: Sequence[RunSize], plan: Plan) -> Iterator[Removal]:
    """Of campaigns whose runs are all named, and ended with an attempt: of one that never began these logs are all."""
    ended = {row.run.run_id for row in rows if not row.is_open and row.run.attempt_numbers()}
    named = {row.run.run_id for row in rows}
    for ledger in read_ledgers(root)[0]:
        ids = {job.run_id for job in ledger.jobs}
        folder = submission_folder(ledger_path(root, ledger.campaign))
        if not ids & named or not folder.is_dir():
            continue
        if missing := [each for each in ids if each not in ended and (root / each).is_dir()]:
            plan.kept.append((ledger.campaign, f"{len(missing)} of its runs are not named, not ended, or never began"))
            continue
        yield Removal(ledger.campaign, "submissions", folder, bytes_below(folder))


def _remove(path: Path) -> str | None:
    """None, or why it is still there."""
    aside = path if path.name.startswith(".") else path.with_name(f".{path.name}.aside")
    try:
        if path.is_symlink() or not path.is_dir():
            path.unlink()
            return None
        if aside != path:
            shutil.rmtree(aside, ignore_errors=True)
            path.rename(aside)
        shutil.rmtree(aside)
    except OSError as error:
        return f"cannot be removed: {error.strerror}"
    return None


def _forget_removed(run: RunDir) -> None:
    """The index names what is there; its other entries stay."""
    path = run.checkpoints / "index.json"
    try:
        index = read_json(path)
    except RunError:
        return
    if index is None:
        return
    there = [each.name for each in checkpoints_of(run) if not each.is_fixed]
    index["last"] = index.get("last") if index.get("last") in there else (there[-1] if there else None)
    if "healthy" in index:
        index["healthy"] = [name for name in index["healthy"] if name in there]
    write_json(path, index)
