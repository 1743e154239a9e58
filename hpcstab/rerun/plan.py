"""A rerun, checked whole before anything is queued: which checkpoint, which config, and what it goes on with."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from hpcstab.campaign import Branch, PlannedRun
from hpcstab.checkpoint import CheckpointStore, read_checkpoint
from hpcstab.errors import CheckpointError
from hpcstab.rerun.asked import Asked, Overrides
from hpcstab.rerun.fit import layout_of
from hpcstab.rerun.source import Source, own_checkpoint
from hpcstab.rerun.treat import repair_lines, treated
from hpcstab.rerun.weights import content_digest, read_weights
from hpcstab.rundir import RunDir, read_json
from hpcstab.training.branch import Beginning, begin_with_weights, go_on

DEFAULT_FROM = "healthy"


@dataclass(frozen=True)
class Rerun:
    """What is to be submitted, the step that it begins at, and in words what it begins with."""

    planned: PlannedRun
    step: int
    told: tuple[str, ...]


@dataclass(frozen=True)
class _Start:
    """A checkpoint on its way into the new run: its facts for run.json and for its manifest, and words about it."""

    beginning: Beginning
    checkpoint: str
    sha256: str
    repaired: tuple[str, ...]
    weights_only: bool
    scheduled: bool
    told: tuple[str, ...]


def plan_rerun(
    parent: RunDir,
    wanted: str = DEFAULT_FROM,
    added: tuple[str, ...] = (),
    overrides: Overrides = (),
    configs: Path | None = None,
) -> Rerun:
    """Plan a rerun of ``parent``; nothing is written.

    Args:
        wanted: ``healthy``, ``last``, ``best``, a step, the name of a checkpoint folder, or a file with weights.
        added: fixes of the model's YAML.
        overrides: of ``--set``.

    Raises:
        ConfigError: a fix or key is unknown, or changes the network; nothing is left to train.
        CheckpointError: there is no such checkpoint, it is damaged, does not fit, or cannot be repaired.
    """
    asked = Asked(parent, added, overrides, configs)
    resolved = asked.branched.resolved
    source = own_checkpoint(parent, wanted)
    start = _with_weights(asked, Path(wanted)) if source is None else _from_checkpoint(asked, source)
    state = start.beginning.state
    facts = {
        "run_id": parent.run_id,
        "path": str(parent.path.resolve()),
        "checkpoint": start.checkpoint,
        "step": state["step"],
        "update": state["update"],
        "sha256": start.sha256,
        "repaired": list(start.repaired) or None,
        "weights_only": start.weights_only,
        "added": list(added),
        "overrides": dict(overrides),
        "fresh": list(start.beginning.fresh),
    }

    def write_start(run: RunDir) -> None:
        manifest = {"update": state["update"], "attempt": 0, "nonfinite": [], "scheduled": start.scheduled}
        facts_of_start = {**manifest, "world_size": 1, "evaluation": None, "begins_run": True}
        CheckpointStore(run).save(state["step"], state, facts_of_start, healthy=True)

    planned = PlannedRun(resolved, asked.seed, Branch(asked.branched.experiment, facts, write_start))
    return Rerun(planned, state["step"], (*start.told, *_told_of_changes(asked, start)))


def _from_checkpoint(asked: Asked, source: Source) -> _Start:
    asked.refuse_another_network(layout_of(source.state["network"]))
    asked.refuse_the_end(source.step)
    with treated(source.folder) as (sound, repaired):
        state = source.state if sound == source.folder else read_checkpoint(sound)[0]
    repaired = repaired or repair_lines(source.manifest.get("repairs", ()))
    try:
        beginning = go_on(asked.task, asked.parent_config, asked.config, asked.seed, state, repaired=bool(repaired))
    except (KeyError, ValueError, RuntimeError) as error:
        reason = str(error).splitlines()[0]
        raise CheckpointError(f"{source.folder}: was not written by this version of hpcstab: {reason}") from None
    return _Start(
        beginning,
        checkpoint=source.folder.name,
        sha256=str(source.manifest["state_sha256"]),
        repaired=repaired,
        weights_only=False,
        scheduled=bool(source.manifest.get("scheduled", True)),
        told=(
            *(f"left out: {reason}" for reason in source.refused),
            f"goes on from step {source.step} of {asked.parent.run_id} ({source.folder.name})",
            *(f"repaired by the doctor: {line}" for line in repaired),
        ),
    )


def _with_weights(asked: Asked, path: Path) -> _Start:
    """Weights out of a file; the training begins at step 0."""
    with treated(path) as (sound, repaired):
        weights = read_weights(sound, asked.network)
    told = f"begins at step 0 with the {len(weights.state_dict)} tensors of {path}"
    told += f", at '{weights.place}'" if weights.place else ""
    told += f", '{weights.prefix}' taken off their names" if weights.prefix else ""
    return _Start(
        begin_with_weights(asked.task, asked.config, asked.seed, weights.state_dict),
        checkpoint=path.name,
        sha256=content_digest(path),
        repaired=repaired,
        weights_only=True,
        scheduled=True,
        told=(told, *(f"repaired by the doctor: {line}" for line in repaired)),
    )


def _told_of_changes(asked: Asked, start: _Start) -> list[str]:
    told = [f"changed: {difference}" for difference in asked.differences()]
    told += [f"--set {key} of the parent gives way to the added fix" for key in asked.branched.dropped]
    told += [f"starts anew: {part}" for part in start.beginning.fresh]
    if asked.config == asked.parent_config and not start.repaired and not start.weights_only:
        told.append("nothing is changed: it is the continuation of its parent, bit for bit")
        failed = (read_json(asked.parent.status_json) or {}).get("first_failure_step")
        if failed is not None and failed >= start.beginning.state["step"]:
            fixes = f"`hpcstab list` shows the fixes of {asked.branched.resolved.model}"
            told.append(f"the parent failed at step {failed}, and this comes to the same end; --with FIX: {fixes}")
    return told
