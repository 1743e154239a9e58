"""Which fixes of the model's own YAML answer a cause: its author declared what they are for."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from hpcstab.config import load_experiment
from hpcstab.errors import HpcstabError
from hpcstab.explain.facts import Facts

_KEYS = {
    "learning rate": ("optimizer.lr", "scheduler.", "stability.clip_grad_norm"),
    "precision": ("precision.",),
    "layer": ("network.",),
    "bounded": ("stability.gate",),
    "learning": ("losses.", "network.", "optimizer.lr"),
}
"""What is wrong, and which keys a fix for it sets."""
Problem = str


@dataclass(frozen=True)
class Remedy:
    """A fix of the YAML. ``keeps_network``: weights of the run fit it, so that a rerun can go on from them."""

    name: str
    kind: str
    why: str
    keeps_network: bool


def remedies_for(facts: Facts, problem: Problem) -> list[Remedy]:
    """Fixes that the run did not have, cures first, those of ``cured`` before all others.

    None where its model's YAML is not here.
    """
    try:
        file = load_experiment(str(facts.identity.get("model"))).file
    except HpcstabError:
        return []
    had = {fix["name"] for fix in facts.identity.get("fixes", ())}
    wanted = _KEYS[problem]
    found = [
        Remedy(name, fix.kind, fix.why, not any(key.startswith("network.") for key in fix.set))
        for name, fix in file.fixes.items()
        if fix.kind in ("cure", "limit") and name not in had and _sets(fix.set, wanted)
    ]
    in_cured = set(file.variants.get("cured", ()))
    preferred = [remedy for remedy in found if remedy.name in in_cured]
    return sorted(preferred or found, key=lambda remedy: remedy.kind != "cure")


def has_cured(facts: Facts) -> bool:
    """Whether the model's YAML has a variant ``cured``."""
    try:
        return "cured" in load_experiment(str(facts.identity.get("model"))).file.variants
    except HpcstabError:
        return False


def problem_of(replay: Mapping[str, Any] | None) -> Problem:
    """What a replay found to be at fault, in the words of the table; a layer where there was none."""
    verdict = replay["advice"]["verdict"] if replay else "layer"
    return verdict if verdict in _KEYS else "bounded"


def _sets(changes: Iterable[str], wanted: tuple[str, ...]) -> bool:
    return any(key.startswith(wanted) for key in changes)
