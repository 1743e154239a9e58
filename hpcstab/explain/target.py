"""What the word after ``why`` means: a run, a capsule or checkpoint, a log, a bundle."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from hpcstab.errors import EXIT_WRONG_REQUEST, RunError
from hpcstab.rundir import RunDir, find_run

Kind = Literal["run", "checkpoint", "log", "bundle"]
_CHECKPOINTS = (".pt", ".pth", ".ckpt", ".safetensors", ".bin", ".pkl")
_BUNDLES = (".zip", ".tar.gz", ".tgz")
_ZIP_MAGIC = b"PK\x03\x04"


@dataclass(frozen=True)
class Target:
    """``run``: that it belongs to, where it does; ``path``: of a checkpoint, log or bundle."""

    kind: Kind
    path: Path
    run: RunDir | None = None


def find_target(text: str, root: Path) -> Target:
    """Look at what is there; a text that is no path names a run.

    Raises:
        RunError: it is nothing that there is a story of (exit code 2).
    """
    path = Path(text)
    if path.is_file():
        return _of_file(path)
    if path.is_dir():
        run = _run_around(path)
        if _is_checkpoint(path) and path.parent.name != "capsules":
            return Target("checkpoint", path, run)
        if run is not None:
            return Target("run", run.path, run)
        raise RunError(
            f"'{text}' is a folder, but neither a run (run.json) nor a checkpoint (manifest.json); of several"
            f" checkpoints `hpcstab doctor {text}` tells",
            exit_code=EXIT_WRONG_REQUEST,
        )
    run = find_run(text, root)
    return Target("run", run.path, run)


def _of_file(path: Path) -> Target:
    run = _run_around(path)
    if path.name.endswith(_BUNDLES):
        return Target("bundle", path)
    if run is not None and _is_checkpoint(path.parent) and path.parent.parent.name != "capsules":
        return Target("checkpoint", path.parent, run)
    if path.suffix in _CHECKPOINTS or _begins_with(path, _ZIP_MAGIC):
        return Target("checkpoint", path, run)
    return Target("run", run.path, run) if run is not None else Target("log", path)


def _run_around(path: Path) -> RunDir | None:
    """The run whose folder this is, or lies in."""
    here = path.resolve()
    return next((RunDir(folder) for folder in (here, *here.parents) if (folder / "run.json").is_file()), None)


def _is_checkpoint(folder: Path) -> bool:
    return (folder / "manifest.json").is_file() or (folder / "state.pt").is_file()


def _begins_with(path: Path, magic: bytes) -> bool:
    try:
        with path.open("rb") as file:
            return file.read(len(magic)) == magic
    except OSError:
        return False
