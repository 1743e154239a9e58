"""Rules about how a run ended, or goes on: its state, Slurm's last answer, its error, its log."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime

from hpcstab.explain.causes import Cause, Line
from hpcstab.explain.facts import Facts
from hpcstab.explain.log_causes import cause_of_error, causes_in_log, shortened
from hpcstab.explain.rule import Rule, Seen
from hpcstab.state.early_end import why_not_started
from hpcstab.state.evidence import RESULTS, State
from hpcstab.units import duration

_KILLED = ("0:9", "137:0", "9:0")
"""Exit codes, as accounting has them, of a process that was killed with signal 9."""


def causes_of_end(facts: Facts) -> Iterator[Cause]:
    """What the trainer's error and the logs of a run say, where it ended without saying itself how."""
    if facts.state.state in RESULTS:
        return
    said = False
    if facts.error and facts.state.state == "failed":
        known = cause_of_error(facts.error, "status.json")
        said = known is not None
        if known is not None:
            yield known
    if facts.state.state in ("queued", "running") and not _is_silent(facts):
        return
    for scan in facts.logs:
        found = [cause for cause in causes_in_log(scan, _relative(facts, scan.path)) if cause.about.bad_news]
        if len(facts.attempts) > 1 and not scan.path.is_relative_to(facts.run.path):
            found = [_less_sure(cause) for cause in found]  # it holds the words of earlier attempts as well
        said |= any(cause.confidence != "guess" for cause in found)
        yield from found
    if facts.error and facts.state.state == "failed" and not said:
        yield Cause("refused", "certain", shortened(facts.error), (Line("status.json", shortened(facts.error)),))


def _less_sure(cause: Cause) -> Cause:
    return replace(cause, confidence="likely") if cause.confidence == "certain" else cause


def _state_is(*states: State) -> Callable[[Facts], Seen]:
    def look(facts: Facts) -> Seen:
        if facts.state.state not in states:
            return None
        return _state_text(facts), [state_line(facts)]

    return look


def _slurm_says(*words: str) -> Callable[[Facts], Seen]:
    def look(facts: Facts) -> Seen:
        scheduled = facts.scheduled
        if scheduled is None or scheduled.answer.state not in words or facts.state.state in RESULTS:
            return None
        node = f" on {scheduled.answer.node}" if scheduled.answer.node else ""
        return f"Slurm says {scheduled.answer.state}{node} of job {scheduled.answer.job_id}", [_slurm_line(facts)]

    return look


def _saves_failed(facts: Facts) -> Seen:
    """The training goes on without them, until something else cannot be written."""
    failed = facts.of("checkpoint_failed")
    if not failed or facts.state.state in RESULTS:
        return None
    reason = f"{len(failed)} checkpoints could not be saved, the last at step {failed[-1].step}"
    return reason, [failed[-1].evidence(str(failed[-1].data.get("reason")))]


def _killed_by_nine(facts: Facts) -> Seen:
    scheduled = facts.scheduled
    if scheduled is None or scheduled.answer.exit_code not in _KILLED or facts.state.state in RESULTS:
        return None
    return "the job was killed with signal 9: by the kernel for memory, as a rule", [_slurm_line(facts)]


def _vanished(facts: Facts) -> Seen:
    """A process that goes without a word was killed with signal 9, and seldom by a person."""
    if facts.state.state != "lost" or not facts.attempts:
        return None
    return "a process that vanishes without a word was most often killed by the kernel for memory", [state_line(facts)]


def _not_started(facts: Facts) -> Seen:
    if facts.attempts or facts.state.state not in ("failed", "lost"):
        return None
    return facts.state.detail or why_not_started(facts.seen), [state_line(facts)]


def _interrupted(facts: Facts) -> Seen:
    if facts.state.state != "stopped" or facts.attempts[-1].get("reason") != "SIGINT":
        return None
    return "Ctrl-C", [state_line(facts)]


def _is_silent(facts: Facts) -> bool:
    return facts.state.state == "running" and "no heartbeat" in (facts.state.detail or "")


def _hangs(facts: Facts) -> Seen:
    return (f"its process lives, {facts.state.detail}", [state_line(facts)]) if _is_silent(facts) else None


def _runs(facts: Facts) -> Seen:
    if facts.state.state != "running" or _is_silent(facts) or facts.answer_of("finite") == "no":
        return None
    return f"step {facts.step}, every value so far is finite", [state_line(facts)]


def _completed(*, learned: str) -> Callable[[Facts], Seen]:
    def look(facts: Facts) -> Seen:
        answers = [facts.answer_of(question) for question in ("finite", "learned", "unmasked")]
        if facts.state.state != "completed" or answers != ["yes", learned, "yes"]:
            return None
        return f"{facts.step} steps; stayed finite, learned: {learned}, nothing masked", [state_line(facts)]

    return look


END_RULES = (
    Rule("out_of_memory", "certain", _slurm_says("OUT_OF_MEMORY")),
    Rule("out_of_memory", "likely", _killed_by_nine),
    Rule("out_of_memory", "guess", _vanished),
    Rule("disk_full_or_quota", "likely", _saves_failed),
    Rule("node_failure", "certain", _slurm_says("NODE_FAIL", "BOOT_FAIL")),
    Rule("preempted", "certain", _state_is("preempted")),
    Rule("time_limit", "certain", _state_is("timeout")),
    Rule("cancelled_by_user", "certain", _state_is("cancelled")),
    Rule("cancelled_by_user", "certain", _interrupted),
    Rule("stopped_by_signal", "likely", _state_is("stopped")),
    Rule("never_started", "certain", _not_started),
    Rule("lost", "likely", _state_is("lost")),
    Rule("hanging", "likely", _hangs),
    Rule("waiting", "certain", _state_is("queued")),
    Rule("still_running_healthy", "certain", _runs),
    Rule("completed_healthy", "certain", _completed(learned="yes")),
    Rule("completed_healthy", "likely", _completed(learned="unknown")),
)


def nothing_known(facts: Facts) -> Cause:
    """Where no rule applies: what was looked at."""
    looked = ["run.json", "status.json", "the attempts", "events.jsonl", *(scan.path.name for scan in facts.logs)]
    if facts.seen.ledger is not None:
        looked.append("its campaign's ledger")
    return Cause("unknown", "certain", f"{_state_text(facts)}; looked at {', '.join(looked)}", (state_line(facts),))


def state_line(facts: Facts) -> Line:
    """What the state of the run rests on, and how old that is."""
    age = max(0.0, facts.now - facts.state.time)
    detail = f", {facts.state.detail}" if facts.state.detail else ""
    return Line(facts.state.source, f"{facts.state.state}{detail} ({duration(age)} ago)")


def _slurm_line(facts: Facts) -> Line:
    assert facts.scheduled is not None
    answer = facts.scheduled.answer
    code = f", exit code {answer.exit_code}" if answer.exit_code else ""
    age = duration(max(0.0, facts.now - facts.scheduled.time))
    return Line(answer.source, f"job {answer.job_id} {answer.state}{code}, asked {age} ago")


def _state_text(facts: Facts) -> str:
    at = datetime.fromtimestamp(facts.state.time).strftime("%Y-%m-%d %H:%M:%S")
    return f"{facts.state.state} since {at}" + (f", {facts.state.detail}" if facts.state.detail else "")


def _relative(facts: Facts, path: object) -> str:
    text = str(path)
    inside = f"{facts.run.path}/"
    return text.removeprefix(inside).rpartition(".submissions/")[2]
