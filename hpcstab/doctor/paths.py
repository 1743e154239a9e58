"""Which checkpoints a path means."""

from __future__ import annotations

from pathlib import Path

from hpcstab.checkpoint.format import MANIFEST
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

SUFFIXES = {".pt", ".pth", ".bin", ".ckpt", ".safetensors", ".pkl", ".tar"}
FIXED = "_FIXED"


def checkpoints_in(path: Path) -> list[Path]:
    """What ``path`` means: itself, or the checkpoints of a run, of its checkpoints folder, or of any folder.

    Raises:
        CheckpointError: there is no such path, or no checkpoint in the folder (exit code 2).
    """
    if not path.exists():
        raise _wrong(f"{path}: there is no such file or folder")
    if path.is_file() or is_checkpoint_folder(path) or is_distributed(path):
        return [path.parent] if path.name in (MANIFEST, "state.pt") and is_checkpoint_folder(path.parent) else [path]
    inside = path / "checkpoints" if (path / "run.json").is_file() else path
    found = sorted(each for each in inside.iterdir() if _is_checkpoint(each)) if inside.is_dir() else []
    if not found:
        raise _wrong(f"{path}: holds no checkpoint ({', '.join(sorted(SUFFIXES))}, or a folder with {MANIFEST})")
    return found


def is_checkpoint_folder(path: Path) -> bool:
    """Whether it is a folder of hpcstab: a state with a manifest, or what is left of one."""
    return path.is_dir() and ((path / MANIFEST).is_file() or (path / "state.pt").is_file())


def is_distributed(path: Path) -> bool:
    """Whether it is a folder of torch.distributed.checkpoint."""
    return path.is_dir() and (path / ".metadata").is_file()


def fixed_name(path: Path) -> Path:
    """Where a repaired copy goes: ``model_FIXED.pt``, ``step_00000100_FIXED``."""
    return path.with_name(f"{path.stem}{FIXED}{path.suffix}" if path.is_file() else f"{path.name}{FIXED}")


def _is_checkpoint(path: Path) -> bool:
    if path.name.startswith("."):
        return False
    return is_checkpoint_folder(path) or is_distributed(path) or (path.is_file() and path.suffix in SUFFIXES)


def _wrong(text: str) -> CheckpointError:
    return CheckpointError(text, exit_code=EXIT_WRONG_REQUEST)
