"""THE schemas of what a run writes: columns, units, event kinds; their writers and readers.

CSV for what has one row a step, since it opens anywhere and keeps ``nan`` and ``inf``; JSON lines for
events. Rows are appended and flushed, so that a killed process loses at most the row it was writing:
a last line without its newline is cut before it is parsed.
"""

from __future__ import annotations

import csv
import json
import math
import time
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import IO, Any, Literal

from hpcstab.errors import RunError

SCHEMA_VERSION = 1

Outcome = Literal["applied", "skipped", "held", "rescaled"]
OUTCOMES: tuple[Outcome, ...] = ("applied", "skipped", "held", "rescaled")

METRICS_COLUMNS = (
    "step",  # index of the batch position, from 0
    "update",  # applied updates before this step
    "epoch",
    "attempt",
    "time_s",  # seconds since this attempt began to train
    "step_time_s",
    "peak_mem_gib",  # CUDA: peak allocated; CPU: peak resident set of the process
    "loss",  # weighted total
    "loss_finite",  # 1 or 0
    "grad_norm",  # L2 over all parameters, before clipping
    "grad_finite",  # 1 or 0
    "clip_scale",  # factor on the gradients, 1 where nothing was clipped
    "lr",
    "num_masked",  # firings of fixes of kind mask in this step
    "num_limited",  # firings of fixes of kind limit in this step
    "outcome",
)
"""Columns of metrics.csv; then ``loss_<term>`` (unweighted) and ``diag_<name>`` as the task declares them."""

EVALS_COLUMNS = ("step", "update", "attempt", "split", "weights", "num_batches", "num_failed_batches", "seconds")
"""Columns of evals.csv; then the task's metrics."""

PROBES_COLUMNS = ("step", "update", "attempt", "module", "grad_norm", "update_norm")
"""Columns of probes.csv: one row a module that owns parameters; norms are L2."""

TERMS_COLUMNS = ("step", "update", "attempt", "term", "weight", "grad_norm", "grad_share")
"""Columns of terms.csv: one row a loss term at each probe. ``grad_norm`` is the L2 norm of the gradient of weight times
term over all parameters, of the step's first micro-batch; ``grad_share`` that norm over the sum of the terms' norms."""

EventKind = Literal[
    "train_start",  # an attempt began to train
    "first_nonfinite",  # the first step with a non-finite loss, gradient or state
    "state_nonfinite",  # parameters (guards: any part of the state) found non-finite at a check
    "buffers_nonfinite",  # buffers found non-finite at a check; the run goes on
    "batchnorm_sick",  # running statistics of a layer were not finite or a variance negative; nothing was done
    "batchnorm_repaired",  # the same, and what was done; num_masked is 1 where a reset hides it
    "batchnorm_reestimated",  # running statistics were estimated anew from training batches
    "batchnorm_not_reestimated",  # no training batch gave finite statistics; the layer is as it was
    "term_nonfinite",  # a loss term was not finite for the first time in this run
    "term_ramped_again",  # a loss term that went bad was taken down to zero and is ramped up again
    "eval_batch_failed",  # an evaluation batch raised or gave a non-finite sum
    "eval_empty",  # an evaluation without one valid batch
    "diverged",  # the run ended because its numbers did
    "step_refused",  # the gate refused the update of a step, for the reason in it
    "guard_warning",  # a guard found something; its verdict and figures are in it
    "backoff",  # the learning rate was multiplied by the ladder's factor
    "recovery",  # after many updates without a verdict the last rung was given back, learning rate and budget
    "rollback",  # the training went back to a healthy checkpoint; the step of the event is where it was
    "halted",  # the ladder has no rung left; the parameters are finite
    "not_reproduced",  # a refused step that was fine when it ran again: a fault of the machine, not of the batch
    "rescaled",  # fp16 gradients overflowed; the step runs again with half the loss scale
    "loop_left",  # a user's own loop ended early; so many batches that were held did not run again
    "capsule_saved",
    "capsule_left_out",  # no capsule of a failing step was written
    "first_failure",  # the first non-finite value, or row that meets a failure condition of the YAML
    "resumed",  # an attempt went on from a checkpoint
    "branched",  # the run begins at a checkpoint of another run: which, what was repaired, what starts anew
    "checkpoint_saved",  # it is on disk; in seconds: what the training waited for it, and its writing took
    "checkpoint_failed",  # it could not be written; the ones before it are as they were, and the training goes on
    "checkpoint_refused",  # a checkpoint did not pass verification; the one before it was taken
    "superseded",  # a newer attempt of this run exists; this one ends
    "stop_requested",  # a signal asked the trainer to stop
    "samples_failed",  # the task raised where it should have drawn pictures; the run ends as it would have
    "tensorboard_absent",  # trainer.tensorboard is optional and the package is not there
    "train_end",
]
EVENT_KINDS: tuple[str, ...] = EventKind.__args__  # type: ignore[attr-defined]


def metrics_header(loss_terms: Iterable[str], diagnostics: Iterable[str]) -> tuple[str, ...]:
    """The header of metrics.csv for a task."""
    return (
        *METRICS_COLUMNS,
        *(f"loss_{term}" for term in loss_terms),
        *(f"diag_{name}" for name in diagnostics),
    )


def evals_header(metric_names: Iterable[str]) -> tuple[str, ...]:
    """The header of evals.csv for a task."""
    return (*EVALS_COLUMNS, *metric_names)


class CsvAppender:
    """Appends rows to one CSV file with a fixed header; each row is flushed to the kernel.

    Opening a file that exists cuts a torn last line and checks that its header is the same.

    Raises:
        RunError: the header differs, or the file cannot be written (disk full, folder gone).
    """

    def __init__(self, path: Path, header: tuple[str, ...]) -> None:
        self.path = path
        self.header = header
        try:
            self._file = self._open()
        except OSError as error:
            raise _write_error(path, error) from None

    def append(self, row: Mapping[str, Any]) -> None:
        """Write one row; every column of the header must be in ``row`` and nothing else."""
        if row.keys() != set(self.header):
            raise ValueError(f"{self.path.name}: row and header differ in {set(row) ^ set(self.header)}")
        line = ",".join(_cell(row[column]) for column in self.header) + "\n"
        _append_line(self._file, line, self.path)

    def close(self) -> None:
        _close(self._file, self.path)

    def _open(self) -> IO[bytes]:
        cut_torn_line(self.path)
        found = read_header(self.path)
        if found and found != self.header:
            raise RunError(f"{self.path}: has the columns of another task; start a new run")
        file = self.path.open("ab", buffering=0)
        if not found:
            try:
                _append_line(file, ",".join(self.header) + "\n", self.path)
            except RunError:
                file.close()
                raise
        return file


class EventLog:
    """Appends decisions to events.jsonl, one a line, flushed to the kernel."""

    def __init__(self, path: Path, attempt: int, rank: int = 0) -> None:
        self.path = path
        self._attempt = attempt
        self._rank = rank
        try:
            cut_torn_line(path)
            self._file = path.open("ab", buffering=0)
        except OSError as error:
            raise _write_error(path, error) from None

    def write(self, kind: EventKind, step: int, update: int, **data: Any) -> None:
        """Append one event; non-finite numbers in ``data`` are written as null and named beside it."""
        event = {
            "time": time.time(),
            "step": step,
            "update": update,
            "attempt": self._attempt,
            "rank": self._rank,
            "kind": kind,
            "data": data,
        }
        _append_line(self._file, dump_json_line(event), self.path)

    def close(self) -> None:
        _close(self._file, self.path)


def dump_json_line(event: Mapping[str, Any]) -> str:
    """One event as a JSON line; non-finite ``data`` become null plus ``nonfinite: {name: "nan"}``."""
    nonfinite = {
        name: str(float(value))
        for name, value in event["data"].items()
        if isinstance(value, float) and not math.isfinite(value)
    }
    if nonfinite:
        event = {**event, "data": {**event["data"], **dict.fromkeys(nonfinite)}, "nonfinite": nonfinite}
    return json.dumps(event, allow_nan=False) + "\n"


def read_rows(path: Path) -> list[dict[str, str]]:
    """Complete rows of a CSV file as text cells; an absent file has none."""
    lines = complete_lines(path)
    return list(csv.DictReader(lines)) if lines else []


def read_history(path: Path) -> dict[int, dict[str, str]]:
    """metrics.csv as step -> its last row in file order, in the order of steps.

    A step that was held and never ran again, since the run ended, is not part of it.
    """
    rows = {int(row["step"]): row for row in read_rows(path)}
    return {step: row for step, row in sorted(rows.items()) if row["outcome"] != "held"}


def read_evals(path: Path) -> list[dict[str, str]]:
    """evals.csv: the last row in file order of each (step, split, weights), in the order of steps."""
    rows = {(int(row["step"]), row["split"], row["weights"]): row for row in read_rows(path)}
    return [row for _, row in sorted(rows.items())]


def read_events(path: Path) -> list[dict[str, Any]]:
    """Complete events of events.jsonl; an absent file has none."""
    return [json.loads(line) for line in complete_lines(path)]


def read_numbered_events(path: Path) -> list[tuple[int, dict[str, Any]]]:
    """(line, event) from 1, without lines that hold none: for whoever looks at a file that may be damaged."""
    found = [(number, _event(line)) for number, line in enumerate(complete_lines(path), 1)]
    return [(number, event) for number, event in found if event is not None]


def read_header(path: Path) -> tuple[str, ...]:
    """The columns of a CSV file; empty where it is absent or has no complete line."""
    with_header = complete_lines(path, limit=1)
    return tuple(with_header[0].split(",")) if with_header else ()


def complete_lines(path: Path, limit: int | None = None) -> list[str]:
    """Lines that end with a newline, without it; a torn last line is left out."""
    return list(_complete_lines(path, limit))


def cut_torn_line(path: Path) -> None:
    """Remove the bytes after the last newline, which a killed writer left."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        content = file.read()
        end = content.rfind(b"\n") + 1
        if end < len(content):
            file.truncate(end)


def _event(line: str) -> dict[str, Any] | None:
    try:
        event = json.loads(line)
    except ValueError:
        return None
    return event if isinstance(event, dict) and {"step", "kind", "data"} <= event.keys() else None


def _complete_lines(path: Path, limit: int | None) -> Iterator[str]:
    if not path.is_file():
        return
    try:
        with path.open("r", encoding="utf-8", newline="\n") as file:
            for number, line in enumerate(file):
                if not line.endswith("\n") or number == limit:
                    return
                yield line[:-1]
    except OSError as error:
        raise RunError(f"{path}: cannot be read: {error.strerror}") from None


def _cell(value: Any) -> str:
    if isinstance(value, bool):
        return str(int(value))
    if isinstance(value, float):
        return repr(value)
    text = str(value)
    if "," in text or "\n" in text or '"' in text:
        raise ValueError(f"a cell may not hold {text!r}")
    return text


def _append_line(file: IO[bytes], line: str, path: Path) -> None:
    try:
        data = line.encode()
        while data:
            data = data[file.write(data) :]
    except OSError as error:
        raise _write_error(path, error) from None


def _close(file: IO[bytes], path: Path) -> None:
    try:
        file.close()
    except OSError as error:
        raise _write_error(path, error) from None


def _write_error(path: Path, error: OSError) -> RunError:
    return RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another --root")
