"""Who made a fault: what the replay has to say, and what it says."""

from __future__ import annotations

from typing import NamedTuple

import torch

from hpcstab.metrics import read_events
from hpcstab.rundir import RunDir
from hpcstab.stability.replay.capsule import Capsule, read_capsule
from hpcstab.stability.replay.replay import Replay
from hpcstab.training.replaying import replay_capsule
from tests.faults.cells import STATE_SITES, Cell
from tests.faults.run import expected_end, task_of
from tests.faults.settings import FAULT_STEP, config_of, is_of_the_scale, name_of_state
from tests.faults.task import BAD_SAMPLE, batch_indices


class Creator(NamedTuple):
    """``what``: sample id of a bad input, name of a bad loss term or tensor of the state; empty for others."""

    kind: str
    operation: str = ""
    direction: str = ""
    module: str = ""
    what: str = ""

    def __str__(self) -> str:
        place = f"{self.direction} in {self.module or 'the loss'}" if self.operation else ""
        return " ".join(filter(None, (self.kind, self.operation, place, self.what)))


_FORWARD = {"nan": "log", "inf": "reciprocal", "fp16_overflow": "exp2", "spike": "mul"}
_BACKWARD = {"nan": "div", "inf": "div"}


def expected_creator(cell: Cell) -> Creator:
    """What was done to the training, in the words of a replay.

    A finite spike has no creator. In the forward pass of fp16 it has one: the operation that rounds it to infinity. A
    backward pass is kept with a loss scale of 1, by which these gradients fit. An overflow that a smaller scale cures
    has no capsule: the event says which scale it needs.
    """
    if cell.site in STATE_SITES:
        return Creator("state", what=name_of_state(cell) or "")
    sample = f"item{batch_indices(FAULT_STEP, 8)[BAD_SAMPLE]}"
    if cell.kind == "norm_overflow":
        return Creator("norm_overflow")
    if is_of_the_scale(cell):
        return Creator("loss scale", what=str(expected_end(cell).loss_scale))
    if cell.kind == "spike" and (cell.precision != "fp16" or cell.site in ("loss_term", "gradient")):
        return Creator("none", what=sample if cell.site == "input" else "")
    if cell.site == "input":
        cast = ("_to_copy", "forward", "encoder") if cell.kind == "spike" else ()
        return Creator("created" if cast else "input", *cast, what=sample)
    if cell.site == "activation":
        return Creator("created", _FORWARD[cell.kind], "forward", "activation")
    if cell.site == "loss_term":
        return Creator("created", _FORWARD[cell.kind], "forward", what="size")
    return Creator("created", _BACKWARD[cell.kind], "backward", "gradient")


def named_creator(cell: Cell, run: RunDir) -> Creator:
    """What a user is told: the event of a sick state, or the replay of the capsule."""
    if cell.site in STATE_SITES:
        return _creator_of_state(cell, run)
    folder = run.capsule(FAULT_STEP)
    if is_of_the_scale(cell) and not folder.is_dir():
        scales = [event["data"]["loss_scale"] for event in read_events(run.events_jsonl) if event["kind"] == "rescaled"]
        return Creator("loss scale", what=str(scales[-1])) if scales else Creator("nothing")
    if not folder.is_dir():
        return Creator("no capsule")
    capsule = read_capsule(folder)
    return _in_short(_replay(cell, capsule), capsule)


def _creator_of_state(cell: Cell, run: RunDir) -> Creator:
    """The event's names, and those of each capsule that was written; one that spread names what it reached as well."""
    named = [event["data"]["names"] for event in read_events(run.events_jsonl) if event["kind"] == "state_nonfinite"]
    for folder in run.capsules.glob("step_*"):
        finding = _replay(cell, read_capsule(folder)).finding
        named.append(finding.names if finding.kind == "state" else [f"{finding.kind} by {folder.name}"])
    expected = name_of_state(cell) or ""
    kin = {expected, "encoder.weight", "ema.encoder.weight"} if cell.site == "optimizer_moment" else {expected}
    if named and all(expected in names and kin.issuperset(names) for names in named):
        return Creator("state", what=expected)
    return Creator("state", what=" ".join(name for names in named for name in names))


def _replay(cell: Cell, capsule: Capsule) -> Replay:
    task, device = task_of(cell, capsule.facts["rank"]), torch.device("cpu")
    return replay_capsule(task, config_of(cell), capsule, device)


def _in_short(replay: Replay, capsule: Capsule) -> Creator:
    finding, root = replay.finding, replay.finding.root
    samples = [capsule.facts["ids"][index] for index in finding.samples or replay.outliers]
    what = samples or (finding.terms if len(finding.terms) == 1 else [])
    if finding.kind != "created" or root is None:
        return Creator(finding.kind, what=" ".join(what))
    return Creator(finding.kind, root.name.split(".")[1], root.direction, root.module, " ".join(what))
