"""Three answers about a run, with evidence, from its files alone.

Stayed finite? Learned? Unmasked? Only three times yes is called stable: a run can be finite because
its gradients are cut, and can look finite because something hides what is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass
from statistics import median
from typing import Any, Literal

from hpcstab.metrics import read_evals, read_events, read_history, read_rows
from hpcstab.rundir import RunDir, read_json

Verdict = Literal["yes", "no", "unknown"]


@dataclass(frozen=True)
class Answer:
    """One answer and the figures it rests on."""

    answer: Verdict
    evidence: tuple[str, ...]


@dataclass(frozen=True)
class Judgement:
    """The three answers about one run."""

    finite: Answer
    learned: Answer
    unmasked: Answer

    @property
    def stable(self) -> bool:
        """Three times yes."""
        return all(answer.answer == "yes" for answer in (self.finite, self.learned, self.unmasked))

    def as_json(self) -> dict[str, Any]:
        """The judgement as status.json and reports hold it."""
        answers = {
            name: {"answer": answer.answer, "evidence": list(answer.evidence)}
            for name, answer in (("finite", self.finite), ("learned", self.learned), ("unmasked", self.unmasked))
        }
        return {**answers, "stable": self.stable}


def judge(run: RunDir) -> Judgement:
    """Judge a run from what it has written so far."""
    history = list(read_history(run.metrics_csv).values())
    events = read_events(run.events_jsonl)
    return Judgement(_finite(history, events), _learned(run, history), _unmasked(history))


def _finite(history: list[dict[str, str]], events: list[dict[str, Any]]) -> Answer:
    sick = [event for event in events if event["kind"] in ("diverged", "state_nonfinite")]
    if not history and not sick:
        return Answer("unknown", ("no step was recorded",))
    poisoned = [
        row for row in history if row["outcome"] == "applied" and "0" in (row["loss_finite"], row["grad_finite"])
    ]
    evidence = [f"{len(history) - len(poisoned)} of {len(history)} steps applied or refused with finite values"]
    if poisoned:
        first = poisoned[0]
        evidence.append(
            f"step {first['step']} applied an update with loss {_short(first['loss'])},"
            f" gradient norm {_short(first['grad_norm'])}"
        )
    evidence += [f"step {event['step']}: {event['data'].get('reason', event['kind'])}" for event in sick[:1]]
    return Answer("no" if poisoned or sick else "yes", tuple(evidence))


def _learned(run: RunDir, history: list[dict[str, str]]) -> Answer:
    identity = run.identity()
    task = read_json(run.task_json)
    if task is None or not history:
        return Answer("unknown", ("the run recorded nothing to judge",))
    beats_floor, evidence = _against_floor(run, identity["compare"], task)
    still, probed = _still_modules(run)
    evidence.append(_loss_line(history))
    if probed:
        evidence.append(
            f"gradient and update norm above zero in {probed - len(still)} of {probed} modules"
            + (f"; none in {', '.join(still[:3])}" if still else "")
        )
    if beats_floor is None or not probed:
        return Answer("unknown", tuple(evidence))
    return Answer("yes" if beats_floor and not still else "no", tuple(evidence))


def _against_floor(run: RunDir, compare: Mapping[str, Any], task: Mapping[str, Any]) -> tuple[bool | None, list[str]]:
    primary, margin = compare["primary"], compare["margin"]
    metric = next(entry for entry in task["metrics"] if entry["name"] == primary)
    floors = [entry for entry in task["baselines"]["validation"] if entry["role"] == "floor"]
    evals = [row for row in read_evals(run.evals_csv) if row["split"] == "validation" and row["weights"] == "raw"]
    if not evals or not floors:
        return None, ["no evaluation was recorded" if floors else f"the task states no floor for {primary}"]
    sign = 1.0 if metric["direction"] == "higher" else -1.0
    floor = max(floors, key=lambda entry: sign * entry["scores"][primary])
    gain = sign * (float(evals[-1][primary]) - floor["scores"][primary])
    line = (
        f"{primary} {float(evals[-1][primary]):.2f} {metric['unit']} at step {evals[-1]['step']},"
        f" {gain:+.2f} against floor '{floor['name']}' {floor['scores'][primary]:.2f} (margin {margin:g})"
    )
    return math.isfinite(gain) and gain > margin, [line]


def _still_modules(run: RunDir) -> tuple[list[str], int]:
    """Modules whose gradient or update was zero in every probe, and how many were probed."""
    moved: dict[str, bool] = {}
    for row in read_rows(run.probes_csv):
        norms = (float(row["grad_norm"]), float(row["update_norm"]))
        moves = all(norm > 0 and math.isfinite(norm) for norm in norms)
        moved[row["module"]] = moved.get(row["module"], False) or moves
    return [module for module, moves in moved.items() if not moves], len(moved)


def _loss_line(history: list[dict[str, str]]) -> str:
    losses = [float(row["loss"]) for row in history if row["loss_finite"] == "1"]
    if not losses:
        return "no finite loss was recorded"
    tenth = max(1, len(losses) // 10)
    first, last = median(losses[:tenth]), median(losses[-tenth:])
    return f"loss {first:.4g} in the first tenth of the finite steps, {last:.4g} in the last"


def _unmasked(history: list[dict[str, str]]) -> Answer:
    if not history:
        return Answer("unknown", ("no step was recorded",))
    masked = sum(int(row["num_masked"]) for row in history)
    refused = [
        row for row in history if row["outcome"] != "applied" and "0" in (row["loss_finite"], row["grad_finite"])
    ]
    limited = sum(int(row["num_limited"]) for row in history)
    evidence = (
        f"masks fired {masked} times",
        f"{len(refused)} steps refused for a non-finite value",
        f"limits inside the model fired {limited} times",
    )
    return Answer("no" if masked or refused else "yes", evidence)


def _short(cell: str) -> str:
    return f"{float(cell):.4g}"
