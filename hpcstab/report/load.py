"""Run folders as objects. What cannot be read is said and counted, never raised and never dropped."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml
from pydantic import ValidationError

from hpcstab.config import Claim, Compare
from hpcstab.errors import HpcstabError
from hpcstab.judgement import judge
from hpcstab.metrics import read_events
from hpcstab.report.frames import NO_EVALS, NO_ROWS, history, read_frame, validation_rows
from hpcstab.report.record import BrokenFolder, LoadedRun, number
from hpcstab.report.words import printable
from hpcstab.rundir import RunDir, read_attempts, read_json
from hpcstab.state.rule import WrittenDown

T = TypeVar("T")
_REQUIRED = ("run_id", "model", "variant", "label", "fixes", "overrides", "seed", "scale", "compare", "claims")
_UNREADABLE = (HpcstabError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


def load_runs(runs: list[RunDir], now: float | None = None) -> tuple[list[LoadedRun], list[BrokenFolder]]:
    """All folders, read once each; ``now`` is the time that heartbeats are compared with."""
    loaded, broken = [], []
    roots = {root: WrittenDown.under(root) for root in {run.path.parents[2] for run in runs}}
    for run in dict.fromkeys(runs):
        try:
            written = roots[run.path.parents[2]]
            loaded.append(load_run(run, written, time.time() if now is None else now))
        except _UNREADABLE as error:
            broken.append(BrokenFolder(run.path, _reason(error)))
    return loaded, broken


def load_run(run: RunDir, written: WrittenDown, now: float) -> LoadedRun:
    """One folder; ``written`` is what stands beside it.

    Raises:
        RunError, KeyError, ValueError: its identity cannot be read.
    """
    identity = _read_identity(run)
    compare = Compare.model_validate(identity["compare"])
    problems: list[str] = []

    def tried(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except _UNREADABLE as error:
            problems.append(f"{what}: {_reason(error)}")
            return otherwise

    unclaimed: tuple[Claim, ...] = ()
    nothing: dict[str, Any] = {}
    none: list[dict[str, Any]] = []
    claims = tried("claims", lambda: tuple(Claim.model_validate(claim) for claim in identity["claims"]), unclaimed)
    config = tried("config.yaml", lambda: _read_config(run.config_yaml), nothing)
    task = tried("task.json", lambda: _read_task(run), nothing)
    status = tried("status.json", lambda: read_json(run.status_json) or {}, nothing)
    attempts = tried("attempts", lambda: read_attempts(run), none)
    events = tried("events.jsonl", lambda: _read_events(run), none)
    rows = tried("metrics.csv", lambda: read_frame(run.metrics_csv, NO_ROWS), NO_ROWS)
    evals = tried("evals.csv", lambda: read_frame(run.evals_csv, NO_EVALS), NO_EVALS)
    state = "unreadable" if problems and not status else written.state_of(run, now).state
    judgement = tried("judgement", lambda: _judgement(run, status), _unknown(problems))
    return LoadedRun(
        run=run,
        identity=identity,
        compare=compare,
        claims=claims,
        config=config,
        task=task,
        status=status,
        attempts=tuple(attempts),
        events=tuple(events),
        rows=rows,
        history=history(rows),
        evals=validation_rows(evals),
        judgement=judgement,
        state=state,
        problems=tuple(printable(problem) for problem in problems),
    )


def _read_identity(run: RunDir) -> dict[str, Any]:
    identity = run.identity()
    missing = [key for key in _REQUIRED if key not in identity]
    if missing:
        raise ValueError(f"run.json has no '{missing[0]}'")
    if not isinstance(identity["seed"], int) or not isinstance(identity["overrides"], dict):
        raise ValueError("run.json: seed is no number, or overrides no mapping")
    parent = identity.get("parent")
    if parent is not None:
        str(parent["run_id"]), int(parent["step"]), str(parent["path"]), str(parent["checkpoint"])
    if not all(isinstance(fix, dict) and isinstance(fix.get("set"), dict) for fix in identity["fixes"]):
        raise ValueError("run.json: a fix does not say what it sets")
    return identity


def _read_task(run: RunDir) -> dict[str, Any]:
    """task.json with every part that readers rely on, or an error; an absent one has no parts."""
    task = read_json(run.task_json) or {}
    for metric in task.get("metrics", []):
        str(metric["name"]), metric["unit"], metric["direction"], metric["about"]
    for entry in task.get("baselines", {}).get("validation", []):
        str(entry["role"]), [number(score) for score in entry["scores"].values()], entry["name"]
    return task


def _read_events(run: RunDir) -> list[dict[str, Any]]:
    events = read_events(run.events_jsonl)
    for event in events:
        int(event["step"]), str(event["kind"]), dict(event["data"])
    return events


def _read_config(path: Path) -> dict[str, Any]:
    config = yaml.safe_load(path.read_text(encoding="utf-8"))
    if not isinstance(config, dict):
        raise ValueError("is not a mapping")
    return config


def _judgement(run: RunDir, status: Mapping[str, Any]) -> Mapping[str, Any]:
    """The trainer's own judgement where the run has ended, else one from the files so far."""
    written = status.get("judgement")
    judgement = written if isinstance(written, dict) else judge(run).as_json()
    for question in ("finite", "learned", "unmasked"):
        answer = judgement[question]
        if answer["answer"] not in ("yes", "no", "unknown") or not isinstance(answer["evidence"], list):
            raise ValueError(f"'{question}' has no answer")
    return {**judgement, "stable": judgement["stable"] is True}


def _unknown(problems: list[str]) -> Mapping[str, Any]:
    answer = {"answer": "unknown", "evidence": problems}
    return {"finite": answer, "learned": answer, "unmasked": answer, "stable": False}


def _reason(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"has no '{error.args[0]}'"
    return " ".join(str(error).split()) or type(error).__name__
