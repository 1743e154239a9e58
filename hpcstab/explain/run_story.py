"""The story of a run: from its facts to an answer, the operation, the checkpoints, the cost and the next command."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from hpcstab.explain.causes import Cause
from hpcstab.explain.commands import commands_for
from hpcstab.explain.cost import Cost, cost_of
from hpcstab.explain.facts import Facts
from hpcstab.explain.rules import causes_of
from hpcstab.explain.story import Section, Story
from hpcstab.identity import branch_text
from hpcstab.state.evidence import number
from hpcstab.units import duration, size

_MAX_CHECKPOINTS = 6
_REPLAYABLE = (
    "batchnorm_poisoned",
    "bad_data",
    "precision_overflow",
    "nonfinite_operation",
    "not_reproducible",
    "divergence_finite",
    "evaluation_empty",
)
"""Causes that a replay could tell more about."""


def story_of_run(facts: Facts) -> Story:
    """All that one screen needs."""
    causes = causes_of(facts)
    cost = cost_of(facts)
    sections = [section for section in _sections(facts, causes[0], cost) if section.lines]
    return Story(
        "run", _headline(facts), causes, tuple(sections), commands_for(facts, causes[0]), _figures(facts, cost)
    )


def _headline(facts: Facts) -> str:
    total = number(facts.status.get("total_steps"))
    at = "" if facts.step is None else f" at step {facts.step}" + (f" of {total:.0f}" if total is not None else "")
    return f"{facts.run.run_id}: {facts.state.state}{at}, {duration(max(0.0, facts.now - facts.state.time))} ago"


def _sections(facts: Facts, cause: Cause, cost: Cost) -> Iterator[Section]:
    yield Section("where", tuple(_where(facts)))
    if facts.replay is not None:
        yield from _replay_sections(facts.replay)
    elif facts.no_replay and cause.name in _REPLAYABLE:
        yield Section("operation", (f"not known: {facts.no_replay}",))
    if facts.history:
        yield Section("learning", tuple(_learning(facts)))
        yield Section("guarded", tuple(_guarded(facts)))
    yield Section("saved", tuple(_checkpoints(facts)))
    yield Section("cost", tuple(_cost(facts, cost)))
    yield Section("unread", facts.problems)


def _where(facts: Facts) -> Iterator[str]:
    attempt = facts.attempts[-1] if facts.attempts else None
    if attempt is None:
        return
    job = f", job {attempt['job_id']}" if attempt.get("job_id") else ""
    gpus = f", GPUs {','.join(map(str, attempt['devices']))}" if attempt.get("devices") else ""
    node = attempt.get("node", "an unnamed node")
    yield f"attempt {attempt.get('attempt')} of {len(facts.attempts)} on {node}{job}{gpus}"
    parent = facts.identity.get("parent")
    if parent:
        yield f"{branch_text(parent)}, parent {parent.get('run_id') or parent.get('path')}"
    first = facts.first_nonfinite_step
    if first is not None:
        yield f"first value that was not finite: step {first}"


def _replay_sections(replay: Mapping[str, Any]) -> Iterator[Section]:
    creator = replay["creator"]
    if replay["kind"] == "input":
        yield Section("operation", ("none: the value was in the batch",))
    elif creator is not None:
        where = f"in {creator['module']}" if creator["module"] else "outside the network"
        lines = [f"{creator['operation']}, {creator['direction']}, {where}"]
        if creator["place"]:
            lines += [from_here(creator["place"]), f"    {creator['text']}"]
        yield Section("operation", tuple(lines))
    if replay["loss_terms"]:
        yield Section("loss term", (", ".join(replay["loss_terms"]),))
    yield Section("batch", (_batch(replay),))
    finite = [rerun["question"] for rerun in replay["reruns"] if rerun["finite"]]
    if finite and replay["kind"] != "none":
        yield Section("finite", tuple(f"the step is finite {question}" for question in finite))
    yield Section("advice", (f"{replay['advice']['verdict']}: {replay['advice']['line']}",))


def _batch(replay: Mapping[str, Any]) -> str:
    ids, at = replay["ids"], f"step {replay['step']}, epoch {replay['epoch']}"
    bad = replay["sample_ids"] or [ids[index] for index in replay["outlier_samples"] if index < len(ids)]
    if not bad:
        return f"{at}: {len(ids)} samples, not one of them in particular"
    return f"{at}: {_some(bad)} ({len(bad)} of {len(ids)} samples)"


def _learning(facts: Facts) -> Iterator[str]:
    judged = ((facts.judgement or {}).get("learned") or {}).get("evidence", ())
    yield f"{facts.answer_of('learned')}: {judged[0] if judged else 'nothing to judge by'}"
    yield from (line for line in judged[1:] if str(line).startswith("loss "))


def _guarded(facts: Facts) -> Iterator[str]:
    stability = facts.config.get("stability") or {}
    guards = stability.get("guards")
    counts = (facts.judgement or {}).get("counts") or {}
    acted = [f"{count} {name.replace('_', ' ')}" for name, count in counts.items() if count]
    named = guards if isinstance(guards, str) else "on" if guards else "none"
    yield f"gate {stability.get('gate', 'unknown')}, guards {named}: {', '.join(acted) or 'nothing to do'}"
    left = facts.of("capsule_left_out")
    if left:
        yield f"{len(left)} capsules left out: {left[-1].data.get('reason')}"


def _checkpoints(facts: Facts) -> Iterator[str]:
    if not facts.checkpoints:
        if facts.history:
            yield "no checkpoint"
        return
    shown = facts.checkpoints[-_MAX_CHECKPOINTS:]
    width = max(len(each.name) for each in shown)
    for each in shown:
        health = "healthy" if each.is_healthy else "SICK   "
        roles = ", ".join(role for role in each.roles if role != "healthy")
        notes = "; ".join(part for part in (roles, each.sick) if part)
        yield f"{each.name:<{width}}  {health}  {size(each.num_bytes):>8}  {notes}".rstrip()
    if len(facts.checkpoints) > len(shown):
        yield f"and {len(facts.checkpoints) - len(shown)} older ones"
    failed = facts.of("checkpoint_failed")
    if failed:
        yield f"{len(failed)} saves failed, the last at step {failed[-1].step}: {failed[-1].data.get('reason')}"
    if not all(each.scanned for each in facts.checkpoints):
        yield "as labelled when they were saved; `hpcstab doctor` reads the bytes"


def _cost(facts: Facts, cost: Cost) -> Iterator[str]:
    if not facts.history or facts.state.state == "completed":
        return
    since = f"step {cost.from_step}" if cost.from_step is not None else "the start: nothing healthy was saved"
    hours = (
        f"{cost.lost_gpu_hours:.2f} GPU-hours" if cost.lost_gpu_hours is not None else f"{cost.seconds:.0f} s, no GPU"
    )
    yield f"{cost.lost_steps} steps since {since} ({hours})"
    if cost.useless_steps:
        yield f"{cost.useless_steps} of all steps ran after the first that was not finite"
    if cost.gpu_hours is not None:
        yield f"{cost.gpu_hours:.2f} GPU-hours over all attempts"


def _figures(facts: Facts, cost: Cost) -> dict[str, Any]:
    return {
        "run_id": facts.run.run_id,
        "state": facts.state.state,
        "state_source": facts.state.source,
        "step": facts.step,
        "first_nonfinite_step": facts.first_nonfinite_step,
        "attempts": [dict(attempt) for attempt in facts.attempts],
        "replay": facts.replay,
        "no_replay": facts.no_replay or None,
        "judgement": facts.judgement,
        "checkpoints": [each.as_json() for each in facts.checkpoints],
        "cost": cost.as_json(),
        "problems": list(facts.problems),
    }


def _some(names: list[str]) -> str:
    return ", ".join(names[:3]) + (f" and {len(names) - 3} more" if len(names) > 3 else "")


def from_here(place: str) -> str:
    """``file:line``, with a file below the working directory as from there."""
    file, _, line = place.rpartition(":")
    here = Path.cwd()
    return f"{Path(file).relative_to(here)}:{line}" if Path(file).is_relative_to(here) else place
