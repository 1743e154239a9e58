"""A sick checkpoint -> a copy that scans clean, or nothing: a file called FIXED is never half repaired."""

from __future__ import annotations

import filecmp
import shutil
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch

from hpcstab.checkpoint import read_manifest, write_checkpoint
from hpcstab.doctor.diagnose import diagnose, examine
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.findings import Diagnosis, Repair
from hpcstab.doctor.paths import fixed_name, is_checkpoint_folder
from hpcstab.doctor.patient import Plan
from hpcstab.doctor.plan import make_plan
from hpcstab.doctor.rewrite import write_edited
from hpcstab.doctor.sources import healthy_neighbour, opened_sibling
from hpcstab.doctor.statistics import Reestimate
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

_OF_THE_FORMAT = ("format_version", "state_bytes", "state_sha256")


def repair(
    path: Path,
    out: Path | None = None,
    *,
    against: Path | None = None,
    reestimate: Reestimate | None = None,
) -> Repair:
    """Write a repaired copy of a sick checkpoint; a healthy one needs none and none is written.

    What is sick comes from ``against``; BatchNorm statistics else from ``reestimate``; all but weights else from the
    nearest healthy checkpoint of the same run; else statistics are reset, optimizer states dropped, averages begun
    anew. Weights are never made up. Where anything would stay sick, nothing is written.

    Args:
        out: where to; default ``<name>_FIXED.<ext>`` beside it, for ours the folder ``step_..._FIXED``.
        against: a healthy sibling.
        reestimate: gives BatchNorm statistics anew where the model is known; :func:`hpcstab.execute.reestimate`.

    Raises:
        CheckpointError: no such path; ``out`` is there already with other content; ``against`` is of no use (exit code
            2 all three); it cannot be written.
    """
    ours = examine(path)
    source = ours.diagnosis
    out = out or fixed_name(source.path)
    if source.verdict in ("healthy", "unreadable"):
        return Repair(source, None, (), (), (), None)
    if out.resolve() == source.path.resolve():
        raise CheckpointError(f"--out {out}: is the original, which is never touched", exit_code=EXIT_WRONG_REQUEST)
    hopeless = _hopeless(ours)
    if hopeless:
        return Repair(source, None, (), source.sick or source.findings[:1], (hopeless,), None)
    with ExitStack() as stack:
        sibling = stack.enter_context(opened_sibling(against, ours)) if against is not None else None
        in_run = is_checkpoint_folder(source.path) and sibling is None
        beside = healthy_neighbour(ours) if in_run else None
        own_run = stack.enter_context(opened_sibling(beside, ours)) if beside is not None else None
        file = stack.enter_context(ours.contents.open())
        plan = make_plan(ours, file, sibling, own_run, reestimate)
        if plan.left:
            return Repair(source, None, (), tuple(plan.left), (*plan.advice, *_instead(ours, plan, beside)), None)
        after = _write(ours, plan, out)
    if after.verdict != "healthy":
        return Repair(source, None, tuple(plan.changes), after.sick, tuple(plan.advice), after)
    return Repair(source, out, tuple(plan.changes), (), tuple(plan.advice), after)


def _hopeless(ours: Examined) -> str:
    """Why nothing can be done, in words; empty where something can."""
    if ours.diagnosis.verdict == "unsafe":
        return "a copy would call the same functions: get the checkpoint again from a source that you trust"
    if ours.contents.kind == "hpcstab capsule":
        return "a capsule is the evidence of a failing step and stays as it is: `hpcstab replay` it"
    if any(finding.code == "bad_manifest" for finding in ours.diagnosis.findings):
        return "without its manifest nobody knows what the state has to be: go on from another checkpoint of the run"
    return ""


def _instead(ours: Examined, plan: Plan, beside: Path | None) -> list[str]:
    """What to do where values would have to be made up."""
    if not any(finding.part == "weights" for finding in plan.left):
        return []
    beside = beside or healthy_neighbour(ours)
    if beside is None:
        return ["weights cannot be made up: go back to an earlier healthy checkpoint; none was found beside this one"]
    return [
        f"weights cannot be made up: go back to {beside}, which is healthy, or take the sick tensors from it with"
        f" --fix --against {beside}"
    ]


def _write(ours: Examined, plan: Plan, out: Path) -> Diagnosis:
    """Write aside, scan what was written, and give it its name where it is healthy."""
    aside = out.with_name(f".{out.name}.pt.aside")
    try:
        out.parent.mkdir(parents=True, exist_ok=True)
        write_edited(ours.contents, plan.edits, aside)
        after = diagnose(aside)
        if after.verdict != "healthy":
            return after
        if is_checkpoint_folder(ours.diagnosis.path):
            _name_folder(ours, plan, aside, out)
        else:
            _name_file(aside, out)
    except OSError as error:
        raise CheckpointError(f"{out}: cannot be written: {error.strerror}; free space, or say --out") from None
    finally:
        aside.unlink(missing_ok=True)
    return diagnose(out)


def _name_file(aside: Path, out: Path) -> None:
    if not out.exists():
        aside.rename(out)
    elif not filecmp.cmp(aside, out, shallow=False):
        raise _taken(out)


def _name_folder(ours: Examined, plan: Plan, aside: Path, out: Path) -> None:
    """A checkpoint of its own, with what became of the other one in its manifest."""
    assert ours.contents.manifest is not None
    facts: dict[str, Any] = {key: value for key, value in ours.contents.manifest.items() if key not in _OF_THE_FORMAT}
    facts |= {
        "healthy": True,
        "nonfinite": [],
        "repaired_from": ours.diagnosis.path.name,
        "repaired_from_sha256": ours.contents.manifest["state_sha256"],
        "repairs": [asdict(change) for change in plan.changes],
    }
    state: Mapping[str, Any] = torch.load(aside, map_location="cpu", weights_only=True, mmap=True)
    target = out.with_name(f".{out.name}.again") if out.exists() else out
    write_checkpoint(target, state, facts)
    if target == out:
        return
    try:
        same = read_manifest(target)["state_sha256"] == read_manifest(out)["state_sha256"]
    except CheckpointError:
        same = False
    shutil.rmtree(target, ignore_errors=True)
    if not same:
        raise _taken(out)


def _taken(out: Path) -> CheckpointError:
    return CheckpointError(
        f"{out}: is there already, with other content; remove it or say --out", exit_code=EXIT_WRONG_REQUEST
    )
