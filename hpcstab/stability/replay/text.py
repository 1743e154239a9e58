"""A replay in words: what a reader wants to know, the answer first."""

from __future__ import annotations

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

_WIDTH = 9


def replay_text(known: Mapping[str, Any]) -> str:
    """The lines of ``hpcstab replay``, from what :meth:`hpcstab.stability.replay.replayed.Replayed.as_json` knows."""
    return "\n".join(
        f"{label if number == 0 else '':<{_WIDTH}} {line}".rstrip()
        for label, lines in _parts(known)
        for number, line in enumerate(lines)
    )


def _parts(known: Mapping[str, Any]) -> list[tuple[str, list[str]]]:
    """(label, lines) of what a reader wants to know, the answer first."""
    parts = [("step", _step_lines(known)), (_creator_label(known), _creator_lines(known))]
    if known["cause"]:
        parts.append(("cause", [f"{known['cause']['cause']}: {known['cause']['text']}"]))
    parts += [("samples", _sample_lines(known)), ("loss term", [", ".join(known["loss_terms"])])]
    parts += [("then", _path_lines(known)), ("besides", _other_lines(known)), ("re-runs", _rerun_lines(known))]
    parts.append(("advice", [f"{known['advice']['verdict']}: {known['advice']['line']}"]))
    return [(label, lines) for label, lines in parts if any(lines)]


def _step_lines(known: Mapping[str, Any]) -> list[str]:
    same = {True: "as recorded, to the bit", False: "NOT as recorded", None: "no figures on record"}
    position = f"update {known['update']}, rank {known['rank']}"
    figures = f"loss {_figure(known['loss'])}, gradient norm {_figure(known['grad_norm'])}"
    return [
        f"{known['step']} of {known['run_id']} ({position}), here on {known['device']}",
        f"{figures}: {same[known['same_as_recorded']]}",
    ]


def _creator_label(known: Mapping[str, Any]) -> str:
    return {"created": "creator", "input": "bad input", "state": "bad state", "none": "finite"}.get(
        known["kind"], "origin"
    )


def _creator_lines(known: Mapping[str, Any]) -> list[str]:
    creator, kind = known["creator"], known["kind"]
    if kind == "none":
        return ["nothing in this step is non-finite"]
    if kind in ("input", "state", "norm_overflow") or creator is None:
        what = {
            "norm_overflow": "all gradients are finite, their norm is not; the largest is of",
            "state": "not finite before the step:",
        }.get(kind, "not finite:")
        return [f"{what} {_some(known['names'] if kind != 'input' else [creator['operation']])}"]
    lines = [f"{creator['operation']}, {creator['direction']}{_of_forward(creator)}{_in_module(creator)}"]
    if creator["place"]:
        lines += [_from_here(creator["place"]), f"    {creator['text']}"]
    for facts in creator["inputs"]:
        lines.append(f"input {facts['name']}: {_tensor(facts)}")
    if creator["scalars"]:
        lines.append(", ".join(f"{name} {value}" for name, value in creator["scalars"].items()))
    return [*lines, *(f"output: {_tensor(facts)}" for facts in creator["outputs"][:1])]


def _from_here(place: str) -> str:
    """``file:line``, with a file below the working directory as from there."""
    file, _, line = place.rpartition(":")
    here = Path.cwd()
    return f"{Path(file).relative_to(here)}:{line}" if Path(file).is_relative_to(here) else place


def _of_forward(creator: Mapping[str, Any]) -> str:
    if not creator["node"]:
        return ""
    source = f", that is the backward of {creator['source_operation']}" if creator["source_operation"] else ""
    return f" ({creator['node']}{source})"


def _in_module(creator: Mapping[str, Any]) -> str:
    return f", in {creator['module']}" if creator["module"] else ", outside the network"


def _sample_lines(known: Mapping[str, Any]) -> list[str]:
    if known["sample_ids"]:
        return [f"{_some(known['sample_ids'])} ({len(known['samples'])} of {len(known['ids'])})"]
    if known["outlier_samples"]:
        return ["far from the others: " + _some([known["ids"][index] for index in known["outlier_samples"]])]
    return []


def _path_lines(known: Mapping[str, Any]) -> list[str]:
    steps = [
        each["operation"].split(".")[1] + (" by 0 (0 x inf = NaN)" if each["times_zero"] else "")
        for each in known["path"]
    ]
    if not known["target"]:
        return []
    if len(steps) > 8:
        steps = [*steps[:4], f"... {len(steps) - 8} more ...", *steps[-4:]]
    target = known["target"] if known["target"] == "loss" else f"{known['target']} of {_some(known['names'])}"
    return [" -> ".join([*steps, target])] if known["target"] != "state" else []


def _other_lines(known: Mapping[str, Any]) -> list[str]:
    return [f"{each['operation']}{_in_module(each)}" for each in known["others"][:3]]


def _rerun_lines(known: Mapping[str, Any]) -> list[str]:
    width = max(len(rerun["question"]) for rerun in known["reruns"])
    return [f"{rerun['question']:<{width}}  {_outcome(rerun)}" for rerun in known["reruns"]]


def _outcome(rerun: Mapping[str, Any]) -> str:
    if rerun["error"]:
        return f"could not be run: {rerun['error']}"
    figures = f"loss {_figure(rerun['loss'])}, gradient norm {_figure(rerun['grad_norm'])}"
    return f"finite: {figures}" if rerun["finite"] else f"not finite: {figures}"


def _tensor(facts: Mapping[str, Any]) -> str:
    bad = f", {facts['num_nonfinite']} of {math.prod(facts['shape'])} not finite" if facts["num_nonfinite"] else ""
    shape = f"{tuple(facts['shape'])} {facts['dtype']}"
    if facts["minimum"] is None:
        return f"{shape}{bad}"
    return f"{shape} in [{facts['minimum']:.6g}, {facts['maximum']:.6g}]{bad}"


def _figure(value: float | str) -> str:
    return value if isinstance(value, str) else f"{value:.6g}"


def _some(names: list[str]) -> str:
    return ", ".join(names[:4]) + (f" and {len(names) - 4} more" if len(names) > 4 else "")
