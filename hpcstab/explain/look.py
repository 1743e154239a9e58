"""From a target to its story, with whatever other verbs have to be asked on the way."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from hpcstab.errors import RunError
from hpcstab.explain.ask import Asked, Question
from hpcstab.explain.checkpoint_story import story_of_checkpoint
from hpcstab.explain.facts import Facts, gather
from hpcstab.explain.log_scan import scan_log
from hpcstab.explain.log_story import story_of_log
from hpcstab.explain.run_story import story_of_run
from hpcstab.explain.story import Story
from hpcstab.explain.target import Target
from hpcstab.rundir import RunDir, bytes_below, read_json
from hpcstab.state.checkpoints import CheckpointHealth
from hpcstab.state.evidence import OPEN
from hpcstab.units import size

MAX_REPLAY_BYTES = 4_000_000_000
"""A larger step is nothing for a login node, where why is asked as a rule."""
MAX_SCAN_BYTES = 4_000_000_000
"""The doctor reads the checkpoints of a run on the way up to so many bytes; beyond that their labels have to do."""


@dataclass(frozen=True)
class Asking:
    """What may be asked of other verbs (a replay of the capsule, the doctor's scan), ``limit_s`` seconds each.

    ``foreign``: the files are somebody else's, whose words must not choose which code runs here.
    """

    replays: bool = True
    scans: bool = True
    limit_s: float = 60.0
    foreign: bool = False


def look(target: Target, asking: Asking) -> Story:
    """The story of a run, a log or a checkpoint.

    Raises:
        RunError: it cannot be read.
    """
    if target.kind == "log":
        return story_of_log(scan_log(target.path))
    if target.kind == "checkpoint":
        question = Question("doctor", str(target.path))
        of_run = story_of_run(facts_of(target.run, asking)) if target.run else None
        return story_of_checkpoint(target.path, _one(question.wait(asking.limit_s)), of_run)
    assert target.run is not None
    return story_of_run(facts_of(target.run, asking))


def facts_of(
    run: RunDir, asking: Asking, now: float | None = None, checkpoints: tuple[CheckpointHealth, ...] | None = None
) -> Facts:
    """A run's files, the replay of its first capsule, and the doctor's word on its checkpoints.

    ``checkpoints``: what is known of them already; then nobody is asked.
    """
    facts = gather(run, time.time() if now is None else now)
    if checkpoints is not None:
        facts = replace(facts, checkpoints=checkpoints)
    capsule, refusal = _capsule(facts, asking)
    replay = Question("replay", str(capsule)) if capsule else None
    doctor = _doctor(facts) if asking.scans and checkpoints is None else None
    if replay is not None:
        asked = replay.wait(asking.limit_s)
        facts = replace(facts, replay=asked.answer, no_replay=asked.reason)
    else:
        facts = replace(facts, no_replay=refusal)
    return _with_diagnoses(facts, doctor.wait(asking.limit_s)) if doctor else facts


def _capsule(facts: Facts, asking: Asking) -> tuple[Path | None, str]:
    """The first capsule, since later ones follow from it; or why none is replayed."""
    found = sorted(facts.run.capsules.glob("step_*"))
    if not found:
        left_out = facts.of("capsule_left_out")
        reason = f": {left_out[0].data.get('reason')}" if left_out else ", no step of it was refused or not finite"
        return None, f"the run has no capsule{reason}"
    if not asking.replays:
        return None, f"not replayed, as asked: `hpcstab replay {found[0]}` does it"
    num_bytes = bytes_below(found[0])
    if num_bytes > MAX_REPLAY_BYTES:
        return None, f"not replayed, the capsule has {size(num_bytes)}: `hpcstab replay {found[0]}` on a node that can"
    if asking.foreign and ":" in _model_of(found[0]):
        return None, "its task is a file of the sender's, and is not run by itself"
    return found[0], ""


def _model_of(capsule: Path) -> str:
    """``module:Task`` or ``file.py:Task`` for a task outside of hpcstab; one that cannot be read counts as such."""
    try:
        return str((read_json(capsule / "manifest.json") or {})["model"])
    except (RunError, KeyError):
        return ":"


def _doctor(facts: Facts) -> Question | None:
    """One process for all checkpoints of a run that has ended, while they are few enough bytes."""
    num_bytes = sum(each.num_bytes for each in facts.checkpoints)
    if not facts.checkpoints or facts.state.state in OPEN or num_bytes > MAX_SCAN_BYTES:
        return None
    return Question("doctor", *(str(facts.run.checkpoints / each.name) for each in facts.checkpoints))


def _with_diagnoses(facts: Facts, asked: Asked) -> Facts:
    by_name = {Path(found["path"]).name: found for found in _entries(asked.answer)}
    checkpoints = tuple(
        each.with_diagnosis(by_name[each.name]) if each.name in by_name else each for each in facts.checkpoints
    )
    return replace(facts, checkpoints=checkpoints)


def _one(asked: Asked) -> Asked:
    entries = _entries(asked.answer)
    return Asked(entries[0]) if entries else asked


def _entries(answer: Any) -> Sequence[Mapping[str, Any]]:
    """``hpcstab doctor --json`` prints one diagnosis for each checkpoint."""
    return (
        [entry for entry in answer if isinstance(entry, dict) and "verdict" in entry]
        if isinstance(answer, list)
        else []
    )
