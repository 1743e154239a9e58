"""Every file name of a run, how its small files are written and read, and the record of an attempt.

    runs/<model>/<variant>/<YYYYMMDD_HHMMSS>_s<seed>_<signature8>/

Small files are written aside and renamed, so that a reader sees the old one or the new one, whole.
Each file has one writer; a folder that exists already is never reused.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hpcstab.errors import EXIT_WRONG_REQUEST, RunError

SUBMISSIONS = ".submissions"
_FOLDER_NAME = re.compile(r"\d{8}_\d{6}_s\d+_[0-9a-f]{8}")


@dataclass(frozen=True)
class RunDir:
    """The files of one run folder."""

    path: Path

    @property
    def run_json(self) -> Path:
        """Identity and provenance, written once before the first attempt."""
        return self.path / "run.json"

    @property
    def config_yaml(self) -> Path:
        """The resolved, complete config, written once."""
        return self.path / "config.yaml"

    @property
    def task_json(self) -> Path:
        """Metrics, loss terms, diagnostics, baselines: written by the trainer once, before step 0."""
        return self.path / "task.json"

    @property
    def status_json(self) -> Path:
        """What the trainer is doing, at least every 10 s."""
        return self.path / "status.json"

    @property
    def metrics_csv(self) -> Path:
        return self.path / "metrics.csv"

    @property
    def evals_csv(self) -> Path:
        return self.path / "evals.csv"

    @property
    def probes_csv(self) -> Path:
        return self.path / "probes.csv"

    @property
    def terms_csv(self) -> Path:
        return self.path / "terms.csv"

    @property
    def events_jsonl(self) -> Path:
        return self.path / "events.jsonl"

    @property
    def attempts(self) -> Path:
        return self.path / "attempts"

    @property
    def logs(self) -> Path:
        return self.path / "logs"

    @property
    def samples(self) -> Path:
        return self.path / "samples"

    @property
    def tensorboard(self) -> Path:
        return self.path / "tensorboard"

    @property
    def checkpoints(self) -> Path:
        return self.path / "checkpoints"

    def checkpoint(self, step: int) -> Path:
        """The folder of the checkpoint that was made before training step ``step``."""
        return self.checkpoints / f"step_{step:08d}"

    @property
    def capsules(self) -> Path:
        return self.path / "capsules"

    def capsule(self, step: int) -> Path:
        """The folder with what is needed to run the failing step ``step`` again."""
        return self.capsules / f"step_{step:08d}"

    def attempt_json(self, number: int) -> Path:
        return self.attempts / f"{number:03d}.json"

    def log(self, attempt: int, rank: int = 0) -> Path:
        """stdout and stderr of one attempt, or of one of its other ranks."""
        return self.logs / (f"{attempt:03d}_rank{rank}.log" if rank else f"{attempt:03d}.log")

    def logs_of(self, attempt: int) -> list[Path]:
        """The logs of all its ranks so far."""
        return [self.log(attempt), *sorted(self.logs.glob(f"{attempt:03d}_rank*.log"))]

    def attempt_numbers(self) -> list[int]:
        """Numbers of the attempts so far, ascending."""
        return sorted(int(path.stem) for path in self.attempts.glob("[0-9][0-9][0-9].json"))

    def identity(self) -> dict[str, Any]:
        """run.json; a RunError where the folder is no run."""
        identity = read_json(self.run_json)
        if identity is None:
            raise RunError(f"{self.path}: is no run folder, it has no run.json")
        return identity

    @property
    def run_id(self) -> str:
        """``<model>/<variant>/<folder name>``."""
        return "/".join(self.path.parts[-3:])


def create_run_dir(root: Path, model: str, variant: str, seed: int, signature: str) -> RunDir:
    """A new, empty run folder under ``root``; where the name is taken, the next second is.

    Raises:
        RunError: the root cannot be written.
    """
    now = datetime.now().replace(microsecond=0)
    while True:
        name = f"{now:%Y%m%d_%H%M%S}_s{seed}_{signature[:8]}"
        path = root / model / variant / name
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.mkdir()
            for folder in ("attempts", "logs"):
                (path / folder).mkdir()
            return RunDir(path)
        except FileExistsError as error:
            if not path.is_dir():
                raise unwritable_root(root, error) from None
            now += timedelta(seconds=1)
        except OSError as error:
            raise unwritable_root(root, error) from None


def unwritable_root(root: Path, error: OSError) -> RunError:
    """The error for a run root that cannot be written."""
    return RunError(
        f"run root '{root}' cannot be written: {error.strerror}; choose another --root", exit_code=EXIT_WRONG_REQUEST
    )


def find_runs(root: Path) -> list[RunDir]:
    """All runs under ``root``, by model, variant and time."""
    return [
        RunDir(path.parent) for path in sorted(root.glob("*/*/*/run.json")) if _FOLDER_NAME.fullmatch(path.parent.name)
    ]


def find_run(text: str, root: Path) -> RunDir:
    """The one run that ``text`` names: a path, a run id, or any part that is unique under ``root``.

    Raises:
        RunError: no run or several; the message lists them.
    """
    as_path = Path(text)
    if (as_path / "run.json").is_file():
        return RunDir(as_path.resolve())
    found = [run for run in find_runs(root) if text in run.run_id]
    exact = [run for run in found if run.run_id == text]
    if len(exact or found) == 1:
        return (exact or found)[0]
    if not found:
        raise RunError(
            f"no run matches '{text}' under '{root}'; `hpcstab status` lists them", exit_code=EXIT_WRONG_REQUEST
        )
    some = ", ".join(run.run_id for run in found[:5]) + (", ..." if len(found) > 5 else "")
    raise RunError(f"'{text}' matches {len(found)} runs: {some}; give more of the name", exit_code=EXIT_WRONG_REQUEST)


def write_json(path: Path, value: Mapping[str, Any]) -> None:
    """Write a JSON file aside and rename it; non-finite numbers are refused (spell them as text)."""
    write_text(path, json.dumps(value, indent=1, allow_nan=False) + "\n")


def write_text(path: Path, text: str) -> None:
    """Write a text file aside and rename it; on an error nothing half-written stays."""
    write_bytes(path, text.encode())


def write_bytes(path: Path, content: bytes) -> None:
    """Write a file aside and rename it; on an error nothing half-written stays.

    Raises:
        RunError: the disk is full, or the folder cannot be written.
    """
    aside = path.with_name(f".{path.name}.{os.getpid()}.aside")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.write_bytes(content)
        aside.replace(path)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise RunError(f"{path}: cannot be written: {error.strerror}; free space or choose another --root") from None


def read_json(path: Path) -> dict[str, Any] | None:
    """A JSON file as a mapping; None where it is absent.

    Raises:
        RunError: it cannot be read or is not a JSON mapping.
    """
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:
        raise RunError(f"{path}: cannot be read: {error}") from None
    if not isinstance(value, dict):
        raise RunError(f"{path}: is not a JSON mapping")
    return value


def bytes_below(path: Path) -> int:
    """Bytes of a file, or of all below a folder; links are not followed, what vanishes meanwhile counts nothing."""
    try:
        if not path.is_dir() or path.is_symlink():
            return path.lstat().st_size
        with os.scandir(path) as entries:
            found = list(entries)
    except OSError:
        return 0
    total = 0
    for entry in found:
        with contextlib.suppress(OSError):
            is_folder = entry.is_dir(follow_symlinks=False)
            total += bytes_below(Path(entry.path)) if is_folder else entry.stat(follow_symlinks=False).st_size
    return total


def begin_attempt(run: RunDir, facts: Mapping[str, Any]) -> int:
    """Take the next attempt number and record its start; ``facts`` are node, pid, job id, devices."""
    number = max(run.attempt_numbers(), default=0) + 1
    record = {"attempt": number, "start": time.time(), "end": None, "reason": None, "steps_gained": None, **facts}
    write_json(run.attempt_json(number), record)
    return number


def end_attempt(run: RunDir, number: int, reason: str, steps_gained: int) -> None:
    """Record how an attempt ended: ``completed, diverged, halted, failed`` or the signal that stopped it."""
    record = read_json(run.attempt_json(number)) or {"attempt": number}
    write_json(run.attempt_json(number), {**record, "end": time.time(), "reason": reason, "steps_gained": steps_gained})


def read_attempts(run: RunDir) -> list[dict[str, Any]]:
    """The records of all attempts, ascending."""
    records = (read_json(run.attempt_json(number)) for number in run.attempt_numbers())
    return [record for record in records if record is not None]


def remove_asides(run: RunDir) -> None:
    """Remove what a killed writer left aside; called when a new attempt begins."""
    for path in _asides(run.path):
        if path.is_file():  # folders aside are the checkpoint room's
            path.unlink(missing_ok=True)


def _asides(folder: Path) -> Iterator[Path]:
    yield from folder.glob(".*.aside")
    yield from folder.glob("*/.*.aside")
