"""Reruns and what they go on from: found, and told in words.

A rerun is at risk from its first own step on (delayed entry), and shares the steps before with its parent: it is no
independent run, so it enters no pair and answers no claim.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from hpcstab.errors import HpcstabError
from hpcstab.report.record import LoadedRun
from hpcstab.report.sections import Section
from hpcstab.report.words import printable
from hpcstab.rundir import RunDir


def with_ancestors(runs: list[RunDir]) -> list[RunDir]:
    """The runs, and behind them those that they go on from, as far as they are here; no run twice."""
    found = list(dict.fromkeys(runs))
    for run in found:  # it grows while it is read: a parent can have a parent
        parent = _parent_folder(run)
        if parent is not None and parent not in found:
            found.append(parent)
    return found


def _parent_folder(run: RunDir) -> RunDir | None:
    """Beside the rerun first: a copied root brings the parents along."""
    try:
        parent = run.identity().get("parent")
        if parent is None:
            return None
        places = (run.path.parents[2] / str(parent["run_id"]), Path(str(parent["path"])))
    except (HpcstabError, KeyError, TypeError, AttributeError):
        return None  # the report says by itself what of this run cannot be read
    return next((RunDir(place) for place in places if (place / "run.json").is_file()), None)


def lineage_notes(section: Section) -> list[str]:
    """A sentence a rerun, and one on what reruns cannot show."""
    reruns = [run for run in section.runs if run.parent]
    if not reruns:
        return []
    return [
        *(_lineage_text(run, run.parent, section.parent_of(run)) for run in reruns if run.parent),
        "A rerun shares the steps before it with its parent, so that it is no independent run: it is at risk from its"
        " first own step on, enters no pair and answers no claim",
    ]


def _lineage_text(run: LoadedRun, facts: Mapping[str, Any], parent: LoadedRun | None) -> str:
    who = f"{run.label} seed {run.seed}"
    if facts.get("weights_only"):
        text = f"{who} begins at step 0 with the weights of {facts['checkpoint']}"
    else:
        text = f"{who} goes on from step {run.entry_step:,} of {facts['run_id']}"
    text += _became_of(parent) if parent is not None else ", which is not here"
    changes = [*facts.get("added", ()), *(f"{key}={value}" for key, value in facts.get("overrides", {}).items())]
    parts = [f"with {', '.join(changes)}"] if changes else []
    parts += [f"repaired by the doctor: {'; '.join(facts['repaired'])}"] if facts.get("repaired") else []
    parts += [f"starting anew: {', '.join(facts['fresh'])}"] if facts.get("fresh") and not facts["weights_only"] else []
    return printable("; ".join([text, *parts]))


def _became_of(parent: LoadedRun) -> str:
    if parent.first_failure_step is None:
        return f", which is {parent.state} at step {parent.steps:,} without a failure"
    return f", which failed at step {parent.first_failure_step:,} and is {parent.state} at step {parent.steps:,}"
