"""Three answers about a run, with evidence, from its files alone.

Stayed finite? Learned? Unmasked? Only three times yes is called stable: a run can be finite because
its gradients are cut, and can look finite because something hides what is not.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from hpcstab.config import read_yaml_mapping
from hpcstab.interventions import BESIDE, count_interventions, declared_fault_steps
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
    """The three answers about one run; ``counts`` say how often something stood between its numbers and its state."""

    finite: Answer
    learned: Answer
    unmasked: Answer
    counts: Mapping[str, int] = field(default_factory=dict)

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
        return {**answers, "stable": self.stable, "counts": dict(self.counts)}


def judge(run: RunDir) -> Judgement:
    """Judge a run from what it has written so far."""
    history = list(read_history(run.metrics_csv).values())
    events = read_events(run.events_jsonl)
    config = read_yaml_mapping(run.config_yaml) if run.config_yaml.is_file() else {}
    counts = count_interventions(history, events, declared_fault_steps(config))
    return Judgement(
        _finite(history, events), _learned(run, history, events, config), _unmasked(history, counts), counts
    )


def _finite(history: list[dict[str, str]], events: list[dict[str, Any]]) -> Answer:
    sick = [event for event in events if event["kind"] in ("diverged", "state_nonfinite")]
    sick += [event for event in events if _is_sick_buffer(event)][:1]
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
    evidence += [f"step {event['step']}: {_sickness(event)}" for event in (*sick[:1], *sick[1:][-1:])]
    return Answer("no" if poisoned or sick else "yes", tuple(evidence))


def _is_sick_buffer(event: Mapping[str, Any]) -> bool:
    """Buffers belong to the state: NaN or infinite ones were in it, also where they were repaired at once."""
    if event["kind"] in ("batchnorm_sick", "batchnorm_repaired"):
        return bool(event["data"]["num_nan"] or event["data"]["num_inf"])
    return bool(event["kind"] == "buffers_nonfinite")


def _sickness(event: Mapping[str, Any]) -> str:
    data = event["data"]
    if "layer" in data:
        return f"running statistics of {data['layer']} held {data['num_nan']} NaN and {data['num_inf']} infinities"
    if event["kind"] == "buffers_nonfinite":
        return f"{len(data['names'])} buffers were non-finite, first {data['names'][0]}"
    return str(data.get("reason", event["kind"]))


def _learned(
    run: RunDir, history: list[dict[str, str]], events: list[dict[str, Any]], config: Mapping[str, Any]
) -> Answer:
    identity = run.identity()
    task = read_json(run.task_json)
    if task is None or not history:
        return Answer("unknown", ("the run recorded nothing to judge",))
    beats_floor, evidence = _against_floor(run, identity["compare"], task)
    still, probed = _still_modules(run)
    evidence += [_loss_line(history), *_average_line(run, config, identity["compare"]["primary"])]
    if probed:
        evidence.append(
            f"gradient and update norm above zero in {probed - len(still)} of {probed} modules"
            + (f"; none in {', '.join(still[:3])}" if still else "")
        )
    halted = [event for event in events if event["kind"] == "halted"]
    if halted:
        evidence.append(f"halted at step {halted[-1]['step']}: {halted[-1]['data'].get('reason', '')}")
        return Answer("no", tuple(evidence))
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
    how = "fell" if last < first else "did not fall"
    return f"loss {how}: {first:.4g} in the first tenth of the finite steps, {last:.4g} in the last"


def _average_line(run: RunDir, config: Mapping[str, Any], primary: str) -> list[str]:
    """With a moving average of the parameters there are two networks: which of them was judged."""
    if config.get("trainer", {}).get("ema_decay") is None:
        return []
    evals = [row for row in read_evals(run.evals_csv) if row["split"] == "validation" and row["weights"] == "ema"]
    if not evals:
        return ["judged are the raw weights; their moving average was not evaluated"]
    last = evals[-1]
    return [f"judged are the raw weights; their moving average has {primary} {float(last[primary]):.2f}"]


def _unmasked(history: list[dict[str, str]], counts: Mapping[str, int]) -> Answer:
    if not history:
        return Answer("unknown", ("no step was recorded",))
    evidence = [
        f"masks fired {counts['masked']} times",
        f"{counts['refused_nonfinite']} steps refused for a non-finite value",
        f"limits inside the model fired {counts['limited']} times",
        f"gradients clipped in {counts['clipped']} steps, {counts['spikes']} spikes refused, "
        f"{counts['rescaled']} loss-scale back-offs, {counts['backoffs']} learning-rate back-offs, "
        f"{counts['rollbacks']} rollbacks",
    ]
    if counts["not_reproduced"]:
        evidence.append(f"{counts['not_reproduced']} non-finite steps were refused and fine when they ran again")
    if counts["refused_declared"]:
        evidence.append(f"{counts['refused_declared']} steps refused on a declared fault, which is as it should be")
    if any(counts[what] for what in BESIDE):
        evidence.append(", ".join(f"{counts[what]} {words}" for what, words in BESIDE.items() if counts[what]))
    voids = counts["masked"] or counts["refused_nonfinite"] or counts["not_reproduced"]
    return Answer("no" if voids else "yes", tuple(evidence))


def _short(cell: str) -> str:
    return f"{float(cell):.4g}"
