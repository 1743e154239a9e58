"""Run folders as objects. What cannot be read is said and counted, never raised and never dropped."""

from __future__ import annotations

import io
import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import pandas as pd
import yaml
from pydantic import ValidationError

from hpcstab.config import Claim, Compare
from hpcstab.errors import HpcstabError
from hpcstab.judgement import judge
from hpcstab.metrics import read_events
from hpcstab.report.state import derive_state
from hpcstab.rundir import RunDir, read_attempts, read_json

T = TypeVar("T")
_REQUIRED = ("run_id", "model", "variant", "label", "fixes", "overrides", "seed", "scale", "compare", "claims")
_UNREADABLE = (HpcstabError, OSError, ValueError, KeyError, TypeError, AttributeError, yaml.YAMLError)


@dataclass(frozen=True)
class BrokenFolder:
    """A folder of which not even the identity can be read: it belongs to no variant."""

    path: Path
    reason: str


@dataclass(frozen=True)
class LoadedRun:
    """What one run wrote. ``problems`` are the files that could not be read; their values are missing.

    ``history`` has one row a step (the last in file order), ``rows`` every row of every attempt,
    ``evals`` the validation rows with raw weights.
    """

    run: RunDir
    identity: Mapping[str, Any]
    compare: Compare
    claims: tuple[Claim, ...]
    config: Mapping[str, Any]
    task: Mapping[str, Any]
    status: Mapping[str, Any]
    attempts: tuple[Mapping[str, Any], ...]
    events: tuple[Mapping[str, Any], ...]
    rows: pd.DataFrame
    history: pd.DataFrame
    evals: pd.DataFrame
    judgement: Mapping[str, Any]
    state: str
    problems: tuple[str, ...]

    @property
    def run_id(self) -> str:
        return printable(self.identity["run_id"])

    @property
    def model(self) -> str:
        return printable(self.identity["model"])

    @property
    def label(self) -> str:
        """The variant with its ``--set`` overrides, e.g. ``after{optimizer.lr=0.001}``."""
        return printable(self.identity["label"])

    @property
    def variant(self) -> str:
        return printable(self.identity["variant"])

    @property
    def scale(self) -> str:
        return printable(self.identity["scale"])

    @property
    def seed(self) -> int:
        return int(self.identity["seed"])

    @property
    def overrides(self) -> Mapping[str, Any]:
        return dict(self.identity["overrides"])

    @property
    def metrics(self) -> list[Mapping[str, Any]]:
        """Name, unit, direction and meaning of the task's metrics."""
        return list(self.task.get("metrics", []))

    @property
    def planned_steps(self) -> int | None:
        """Length of the training: the config's ``max_steps``, else what the trainer computed from epochs."""
        configured = self.config.get("trainer", {}).get("max_steps")
        return configured or self.status.get("total_steps")

    @property
    def steps(self) -> int:
        """Steps recorded, the last one included."""
        return int(self.history["step"].iloc[-1]) + 1 if len(self.history) else 0

    @property
    def unfinished(self) -> bool:
        """True where the run has not ended by itself: its last values are not its final ones."""
        return self.state not in ("completed", "diverged", "halted")

    @property
    def first_nonfinite_step(self) -> int | None:
        """The earliest that status, rows or events tell: a killed trainer may not have written its status."""
        finite = (self.history["loss_finite"] == 1) & (self.history["grad_finite"] == 1)
        steps = [int(step) for step in self.history["step"][~finite].iloc[:1]]
        kinds = ("first_nonfinite", "state_nonfinite", "buffers_nonfinite")
        steps += [int(event["step"]) for event in self.events if event["kind"] in kinds]
        return _earliest([*steps, self.status.get("first_nonfinite_step")])

    @property
    def first_failure_step(self) -> int | None:
        """The earlier of the first non-finite step and the first row that met a failure condition."""
        steps = [int(event["step"]) for event in self.events if event["kind"] == "first_failure"]
        return _earliest([*steps, self.first_nonfinite_step, self.status.get("first_failure_step")])

    @property
    def diverged(self) -> bool:
        """The run ended because of its numbers, or its last recorded step was non-finite when it stopped."""
        if self.state == "diverged" or not len(self.history):
            return self.state == "diverged"
        last = self.history.iloc[-1]
        return bool(last["loss_finite"] == 0 and last["outcome"] == "applied")

    def answer(self, question: str) -> str:
        """``yes``, ``no`` or ``unknown`` to ``finite``, ``learned`` or ``unmasked``."""
        return str(self.judgement[question]["answer"])


def load_runs(runs: list[RunDir], now: float | None = None) -> tuple[list[LoadedRun], list[BrokenFolder]]:
    """All folders, read once each; ``now`` is the time that heartbeats are compared with."""
    loaded, broken = [], []
    for run in dict.fromkeys(runs):
        try:
            loaded.append(load_run(run, time.time() if now is None else now))
        except _UNREADABLE as error:
            broken.append(BrokenFolder(run.path, _reason(error)))
    return loaded, broken


def load_run(run: RunDir, now: float) -> LoadedRun:
    """One folder.

    Raises:
        RunError, KeyError, ValueError: its identity cannot be read.
    """
    identity = run.identity()
    missing = [key for key in _REQUIRED if key not in identity]
    if missing:
        raise ValueError(f"run.json has no '{missing[0]}'")
    compare = Compare.model_validate({**identity["compare"], "hierarchy": tuple(identity["compare"]["hierarchy"])})
    int(identity["seed"]), dict(identity["overrides"]), [fix["name"] for fix in identity["fixes"]]
    problems: list[str] = []

    def tried(what: str, read: Callable[[], T], otherwise: T) -> T:
        try:
            return read()
        except _UNREADABLE as error:
            problems.append(f"{what}: {_reason(error)}")
            return otherwise

    claims = tried("claims", lambda: tuple(Claim.model_validate(claim) for claim in identity["claims"]), ())
    config = tried("config.yaml", lambda: _read_config(run.config_yaml), {})
    task = tried("task.json", lambda: read_json(run.task_json) or {}, {})
    status = tried("status.json", lambda: read_json(run.status_json) or {}, {})
    attempts = tried("attempts", lambda: read_attempts(run), [])
    events = tried("events.jsonl", lambda: read_events(run.events_jsonl), [])
    rows = tried("metrics.csv", lambda: read_frame(run.metrics_csv, _METRICS), _METRICS)
    evals = tried("evals.csv", lambda: read_frame(run.evals_csv, _EVALS), _EVALS)
    state = "unreadable" if problems and not status else derive_state(status, attempts, now)
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
        history=_last_of_each_step(rows),
        evals=_last_of_each_step(evals[(evals["split"] == "validation") & (evals["weights"] == "raw")]),
        judgement=judgement,
        state=state,
        problems=tuple(printable(problem) for problem in problems),
    )


_METRICS = pd.DataFrame({"step": [], "loss": [], "grad_norm": [], "loss_finite": [], "grad_finite": [], "outcome": []})
_EVALS = pd.DataFrame({"step": [], "split": [], "weights": [], "num_failed_batches": []})


def read_frame(path: Path, empty: pd.DataFrame) -> pd.DataFrame:
    """Complete rows of a CSV file; what a killed writer left after the last newline is cut.

    An absent file, or one without a row, is ``empty``, whose columns every reader may rely on.

    Raises:
        ValueError: a row or a number in the middle of the file is garbage.
    """
    content = path.read_bytes() if path.exists() else b""
    frame = pd.read_csv(io.BytesIO(content[: content.rfind(b"\n") + 1])) if b"\n" in content else empty
    missing = [column for column in empty.columns if column not in frame.columns]
    if missing:
        raise ValueError(f"has no column '{missing[0]}'")
    texts = {"outcome", "split", "weights"}
    garbage = [column for column in frame.columns if frame[column].dtype.kind not in "iufb" and column not in texts]
    if len(frame) and garbage:
        raise ValueError(f"column '{garbage[0]}' holds something that is no number")
    return frame if len(frame) else empty


def number(value: Any) -> float | None:
    """A figure of a JSON file; the words nan, inf and -inf are non-finite numbers, null is none."""
    return None if value is None else float(value)


def printable(text: object) -> str:
    """``text`` on one line, without control characters that could drive a terminal."""
    return "".join(letter if letter.isprintable() else "�" for letter in str(text))


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
        if judgement[question]["answer"] not in ("yes", "no", "unknown"):
            raise ValueError(f"'{question}' has no answer")
    return judgement


def _unknown(problems: list[str]) -> Mapping[str, Any]:
    answer = {"answer": "unknown", "evidence": problems}
    return {"finite": answer, "learned": answer, "unmasked": answer, "stable": False}


def _last_of_each_step(rows: pd.DataFrame) -> pd.DataFrame:
    return rows.drop_duplicates("step", keep="last").sort_values("step").reset_index(drop=True)


def _earliest(steps: list[Any]) -> int | None:
    known = [int(step) for step in steps if step is not None and not math.isnan(step)]
    return min(known, default=None)


def _reason(error: BaseException) -> str:
    if isinstance(error, ValidationError):
        first = error.errors(include_url=False)[0]
        return f"{'.'.join(str(part) for part in first['loc'])}: {first['msg']}"
    if isinstance(error, KeyError):
        return f"has no '{error.args[0]}'"
    return " ".join(str(error).split()) or type(error).__name__
