"""All that was written about one run, read once for the rules: nothing is asked, and one bad file hides no other."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any, TypeVar

from hpcstab.config import read_yaml_mapping
from hpcstab.errors import HpcstabError
from hpcstab.explain.causes import Line
from hpcstab.explain.log_scan import LogScan, scan_log
from hpcstab.judgement import Judgement, judge
from hpcstab.metrics import read_evals, read_history, read_numbered_events
from hpcstab.rundir import RunDir, read_attempts
from hpcstab.state.answers import Scheduled
from hpcstab.state.checkpoints import CheckpointHealth, checkpoints_of
from hpcstab.state.evidence import Answer, Evidence, collect, number
from hpcstab.state.gpu_hours import gpu_hours
from hpcstab.state.ledger import raw_logs
from hpcstab.state.rule import WrittenDown, answer

_Read = TypeVar("_Read")


@dataclass(frozen=True)
class Event:
    """A decision, and the line of events.jsonl that it stands in, from 1."""

    line: int
    step: int
    kind: str
    data: Mapping[str, Any]

    def evidence(self, text: str) -> Line:
        return Line(f"events.jsonl:{self.line}", text)


@dataclass(frozen=True)
class Facts:
    """A run as its files tell it at the Unix time ``now``.

    ``logs``: of the newest attempt, and what submitit caught of all of them. ``replay``: what ``hpcstab replay --json``
    says of the first capsule; where it is None, ``no_replay`` says why. ``problems``: files that could not be read.
    """

    run: RunDir
    now: float
    seen: Evidence
    state: Answer
    scheduled: Scheduled | None
    identity: Mapping[str, Any]
    config: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    events: tuple[Event, ...]
    history: tuple[Mapping[str, str], ...]
    evals: tuple[Mapping[str, str], ...]
    judgement: Mapping[str, Any] | None
    checkpoints: tuple[CheckpointHealth, ...]
    logs: tuple[LogScan, ...]
    problems: tuple[str, ...]
    replay: Mapping[str, Any] | None = None
    no_replay: str = ""
    gpu_hours: float | None = field(default=None)

    @property
    def status(self) -> Mapping[str, Any]:
        return self.seen.status or {}

    @cached_property
    def step(self) -> int | None:
        """How far it came."""
        at = number(self.status.get("step"))
        if at is not None:
            return int(at)
        return int(self.history[-1]["step"]) + 1 if self.history else None

    @cached_property
    def first_nonfinite_step(self) -> int | None:
        at = number(self.status.get("first_nonfinite_step"))
        found = [event.step for event in self.of("first_nonfinite")]
        return int(at) if at is not None else min(found, default=None)

    @property
    def last_healthy(self) -> CheckpointHealth | None:
        """The newest checkpoint that may be gone on from."""
        return next((each for each in reversed(self.checkpoints) if each.is_healthy), None)

    @property
    def error(self) -> str:
        """What the trainer wrote when it crashed."""
        return str(self.status.get("error") or "")

    def of(self, *kinds: str) -> list[Event]:
        """The events of some kinds, in order."""
        return [event for event in self.events if event.kind in kinds]

    def answer_of(self, question: str) -> str:
        """yes, no or unknown to ``finite``, ``learned`` or ``unmasked``."""
        return str(((self.judgement or {}).get(question) or {}).get("answer", "unknown"))


def gather(run: RunDir, now: float, written: WrittenDown | None = None) -> Facts:
    """Read a run. ``written``: ledgers and Slurm's last answers of its root, where they were read already."""
    written = written or WrittenDown.under(run.path.parents[2])
    ledger, job = written.jobs.get(run.run_id, (None, None))
    seen = collect(run, ledger, job)
    problems: list[str] = [seen.problem] if seen.problem else []

    def read(what: Callable[[], _Read], otherwise: _Read) -> _Read:
        try:
            return what()
        except (HpcstabError, OSError, ValueError, KeyError, TypeError) as error:
            problems.append(str(error))
            return otherwise

    state = answer(seen, now, written.answers)
    status = seen.status or {}
    logs = [log for attempt in run.attempt_numbers()[-1:] for log in run.logs_of(attempt)]
    raw = raw_logs(run.path.parents[2], ledger, job) if ledger and job else []
    return Facts(
        run=run,
        now=now,
        seen=seen,
        state=state,
        scheduled=written.answers.of(ledger, job) if ledger and job and ledger.slurm else None,
        identity=read(run.identity, {}),
        config=read(lambda: read_yaml_mapping(run.config_yaml), {}),
        attempts=tuple(read(lambda: read_attempts(run), [])),
        events=tuple(read(lambda: _events(run), [])),
        history=tuple(read(lambda: list(read_history(run.metrics_csv).values()), [])),
        evals=tuple(read(lambda: read_evals(run.evals_csv), [])),
        judgement=status.get("judgement") or _as_json(read(lambda: judge(run), None)),
        checkpoints=tuple(checkpoints_of(run)),
        logs=tuple(_scans([*logs, *raw], problems)),
        problems=tuple(dict.fromkeys(problems)),
        gpu_hours=gpu_hours(seen, state.state == "running", now),
    )


def _scans(paths: list[Path], problems: list[str]) -> Iterator[LogScan]:
    for path in paths:
        try:
            if path.is_file() and path.stat().st_size:
                yield scan_log(path)
        except (HpcstabError, OSError) as error:
            problems.append(str(error))


def _as_json(judgement: Judgement | None) -> Mapping[str, Any] | None:
    return judgement.as_json() if judgement else None


def _events(run: RunDir) -> list[Event]:
    return [
        Event(line, int(event["step"]), event["kind"], event["data"])
        for line, event in read_numbered_events(run.events_jsonl)
    ]
