"""Rules about the numbers of a run: what made them useless, from its events, its rows and the replay of its capsule."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

from hpcstab.explain.causes import Line
from hpcstab.explain.facts import Event, Facts
from hpcstab.explain.rule import Rule, Seen
from hpcstab.interventions import declared_fault_steps
from hpcstab.state.evidence import number

RUNAWAY_FACTOR = 10.0
"""A loss that ends so many times above its best has run away, finite or not."""


def _poisoned(facts: Facts) -> Seen:
    sick = [event for event in facts.of("buffers_nonfinite", "batchnorm_sick") if _statistics(event)]
    if not sick or _sick_parameters(facts):
        return None
    first = sick[0]
    names = _statistics(first)
    failed = [event for event in facts.of("eval_empty", "eval_batch_failed") if event.step >= first.step]
    if not failed:
        return None
    reason = (
        f"{len(names)} running statistics were not finite at step {first.step}, first {names[0]}; the weights are"
        f" finite, and evaluations fail since step {failed[0].step}"
    )
    lines = [first.evidence(f"not finite: {', '.join(names[:3])}"), failed[0].evidence(_text_of(failed[0]))]
    bad = facts.of("first_nonfinite")
    if bad and bad[0].data.get("what") == "step":
        lines.append(bad[0].evidence(f"step {bad[0].step} was the first that was not finite: it ran through them"))
    return reason, lines


def _bad_data(facts: Facts) -> Seen:
    replay = facts.replay
    if replay is None or (replay["kind"] != "input" and replay["advice"]["verdict"] != "data"):
        return None
    who = ", ".join(replay["sample_ids"][:3])
    who = f" ({who})" if who else ""
    declared = int(replay["step"]) in declared_fault_steps(facts.config)
    how = "a fault that data.faults declares" if declared else replay["advice"]["line"]
    return f"the batch of step {replay['step']}{who}: {how}", [_replay_line(facts, replay)]


def _precision(facts: Facts) -> Seen:
    replay = facts.replay
    if replay is None or replay["advice"]["verdict"] != "precision":
        return None
    return f"step {replay['step']}: {replay['advice']['line']}", [_replay_line(facts, replay)]


def _operation(facts: Facts) -> Seen:
    replay = facts.replay
    kinds = ("created", "placed", "uninitialised", "outside", "norm_overflow")
    if replay is None or replay["kind"] not in kinds or replay["advice"]["verdict"] in ("data", "precision"):
        return None
    recorded = [event for event in facts.of("first_nonfinite", "step_refused") if event.step == replay["step"]]
    return _what_replay_says(replay), [
        _replay_line(facts, replay),
        *(each.evidence(_text_of(each)) for each in recorded),
    ]


def _state_before(facts: Facts) -> Seen:
    replay = facts.replay
    if replay is None or replay["kind"] != "state":
        return None
    return f"before step {replay['step']}: {replay['advice']['line']}", [_replay_line(facts, replay)]


def _recorded(facts: Facts) -> Seen:
    """Without a replay: the numbers are known, who made them is not."""
    first = facts.of("first_nonfinite", "state_nonfinite")
    if not first or (facts.replay is not None and facts.replay["kind"] != "none"):
        return None
    terms = [str(event.data["term"]) for event in facts.of("term_nonfinite") if event.step == first[0].step]
    of_terms = f", loss terms {', '.join(terms)}" if terms else ""
    return f"step {first[0].step} was not finite{of_terms}", [first[0].evidence(_text_of(first[0]))]


def _again_finite(facts: Facts) -> Seen:
    again = facts.of("not_reproduced")
    replay = facts.replay
    if replay is not None and replay["advice"]["verdict"] == "not reproducible":
        return f"step {replay['step']}: {replay['advice']['line']}", [_replay_line(facts, replay)]
    if again:
        return f"step {again[0].step} was refused, and fine when it ran again", [again[0].evidence(_text_of(again[0]))]
    return None


def _condition_met(facts: Facts) -> Seen:
    met = [event for event in facts.of("first_failure") if "value" in event.data]
    if not met:
        return None
    column, value = met[0].data["what"], met[0].data.get("value")
    reason = f"step {met[0].step} met a failure condition of the YAML: {column} was {_figure(value)}"
    return reason, [met[0].evidence(f"{column} {_figure(value)}")]


def _halted_for(*words: str) -> Callable[[Facts], Seen]:
    """The training was ended by a rule whose reason holds one of ``words``."""

    def look(facts: Facts) -> Seen:
        halts = [event for event in facts.of("halted") if any(word in _reason(event) for word in words)]
        if not halts or facts.state.state != "halted":
            return None
        return f"ended by a rule at step {halts[-1].step}: {_reason(halts[-1])}", [
            halts[-1].evidence(_reason(halts[-1]))
        ]

    return look


def _ran_away(facts: Facts) -> Seen:
    losses = [(int(row["step"]), float(row["loss"])) for row in facts.history if row["loss_finite"] == "1"]
    if len(losses) < 2 or facts.first_nonfinite_step is None:
        return None
    best, last = min(losses, key=lambda entry: entry[1]), losses[-1]
    if best[1] <= 0 or last[1] < RUNAWAY_FACTOR * best[1]:
        return None
    reason = (
        f"before it was not finite the loss had risen from {best[1]:.4g} at step {best[0]} to {last[1]:.4g} at step"
        f" {last[0]}: the optimizer, not one operation, may be what to change"
    )
    return reason, [Line("metrics.csv", f"loss {best[1]:.4g} at step {best[0]}, {last[1]:.4g} at step {last[0]}")]


def _no_valid_batch(facts: Facts) -> Seen:
    empty = [event for event in facts.of("eval_empty") if event.step > 0]
    if not empty:
        return None
    failed = [event for event in facts.of("eval_batch_failed") if event.step == empty[0].step]
    said = f"; the first batch: {failed[0].data.get('reason')}" if failed else ""
    reason = f"none of {empty[0].data.get('num_batches')} validation batches at step {empty[0].step} was valid{said}"
    return reason, [event.evidence(_text_of(event)) for event in (empty[0], *failed[:1])]


def _learned_nothing(facts: Facts) -> Seen:
    if facts.state.state != "completed" or facts.answer_of("learned") != "no":
        return None
    return _judged(facts, "learned")


def _hidden(facts: Facts) -> Seen:
    return _judged(facts, "unmasked") if facts.answer_of("unmasked") == "no" else None


NUMERIC_RULES = (
    Rule("batchnorm_poisoned", "certain", _poisoned),
    Rule("batchnorm_poisoned", "certain", _halted_for("running statistics")),
    Rule("bad_data", "certain", _bad_data),
    Rule("precision_overflow", "certain", _precision),
    Rule("nonfinite_operation", "certain", _operation),
    Rule("nonfinite_operation", "likely", _state_before),
    Rule("nonfinite_operation", "likely", _recorded),
    Rule("nonfinite_operation", "likely", _halted_for("guard", "non-finite", "go back")),
    Rule("not_reproducible", "likely", _again_finite),
    Rule("divergence_finite", "certain", _condition_met),
    Rule("divergence_finite", "certain", _halted_for("spike", "headroom")),
    Rule("divergence_finite", "likely", _ran_away),
    Rule("evaluation_empty", "certain", _no_valid_batch),
)
"""What made the numbers useless."""
USE_RULES = (
    Rule("not_learning", "certain", _halted_for("guard stalled")),
    Rule("not_learning", "certain", _learned_nothing),
    Rule("masked", "certain", _hidden),
)
"""What a run that ended is not good for, whatever its numbers are."""


def _what_replay_says(replay: Mapping[str, Any]) -> str:
    creator, cause = replay["creator"], replay["cause"]
    if creator is None:
        return str(replay["advice"]["line"])
    where = f" in {creator['module']}" if creator["module"] else " outside the network"
    why = f", {cause['cause']}: {cause['text']}" if cause else ""
    backward = "the backward of " if creator["direction"] == "backward" else ""
    name = (creator["source_operation"] or creator["operation"]).removeprefix("aten.").partition(".")[0]
    return f"{backward}{name}{where} made the first non-finite value of step {replay['step']}{why}"


def _replay_line(facts: Facts, replay: Mapping[str, Any]) -> Line:
    same = {True: "as recorded, to the bit", False: "NOT as recorded", None: "no figures on record"}
    capsule = f"capsules/{facts.run.capsule(replay['step']).name}"
    figures = f"loss {_figure(replay['loss'])}, gradient norm {_figure(replay['grad_norm'])}"
    return Line(capsule, f"replayed on {replay['device']}: {figures}, {same[replay['same_as_recorded']]}")


def _statistics(event: Event) -> list[str]:
    if event.kind == "batchnorm_sick":
        return [str(event.data["layer"])] if event.data.get("num_nan") or event.data.get("num_inf") else []
    return [name for name in event.data.get("names", ()) if "running_" in name]


def _sick_parameters(facts: Facts) -> bool:
    return any(name.rpartition(".")[2] not in ("running_mean", "running_var")
               for event in facts.of("state_nonfinite") for name in event.data.get("names", ()))  # fmt: skip


def _reason(event: Event) -> str:
    return str(event.data.get("reason", ""))


def _judged(facts: Facts, question: str) -> Seen:
    evidence = [str(line) for line in ((facts.judgement or {}).get(question) or {}).get("evidence", ())]
    return (evidence or [question])[0], [Line("judgement", line) for line in evidence]


def _text_of(event: Event) -> str:
    said = {name: value for name, value in event.data.items() if isinstance(value, str | int | float)}
    return f"{event.kind} at step {event.step}" + "".join(f", {name} {value}" for name, value in list(said.items())[:4])


def _figure(value: object) -> str:
    found = number(value)
    return "not finite" if found is None else f"{found:.4g}"
