"""A checkpoint of any kind, taken apart."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from hpcstab.checkpoint import read_manifest
from hpcstab.checkpoint.format import STATE
from hpcstab.doctor.contents import Contents
from hpcstab.doctor.findings import Finding
from hpcstab.doctor.paths import is_checkpoint_folder, is_distributed
from hpcstab.doctor.pickled import Trouble, read_pickle
from hpcstab.doctor.recognise import Format, recognise, unreadable
from hpcstab.doctor.safetensors_file import read_safetensors
from hpcstab.doctor.torch_legacy import read_legacy, read_tar
from hpcstab.doctor.torch_zip import read_zip
from hpcstab.errors import CheckpointError


def read_contents(path: Path) -> Contents:
    """Take a file, or a folder of hpcstab, apart; what stands in the way is among its findings."""
    if is_distributed(path):
        return _distributed(path)
    if is_checkpoint_folder(path):
        return _folder(path)
    try:
        known = recognise(path)
        if isinstance(known, Finding):
            return Contents("no checkpoint", path, path.stat().st_size, findings=[known])
        contents = _READERS[known](path)
    except OSError as error:
        return Contents("file", path, 0, findings=[unreadable("unreadable", f"cannot be read: {error.strerror}")])
    contents.step = _step_of(contents.tree)
    return contents


def _folder(folder: Path) -> Contents:
    """A checkpoint or capsule of hpcstab; its manifest says what its state must be to the byte."""
    state = folder / STATE
    if not state.is_file():
        return Contents("hpcstab checkpoint", folder, 0, findings=[unreadable("missing", f"has no {STATE}")])
    contents = read_contents(state)
    contents.kind = "hpcstab checkpoint"
    try:
        manifest = read_manifest(folder)
    except CheckpointError as error:
        text = str(error).partition(": ")[2]
        contents.findings.append(Finding("bad_manifest", "sick", "file", "", f"its manifest {text}"))
        return contents
    contents.manifest = manifest
    contents.step = manifest.get("step")
    if "capsule_version" in manifest:
        contents.kind = "hpcstab capsule"
    if manifest["state_bytes"] != contents.num_bytes:
        text = f"has {contents.num_bytes} bytes where {manifest['state_bytes']} were written"
        contents.findings.append(Finding("wrong_size", "sick", "file", "", text))
    return contents


def _distributed(folder: Path) -> Contents:
    text = (
        "is a folder of torch.distributed.checkpoint: make one file of it with"
        f" `python -m torch.distributed.checkpoint.format_utils dcp_to_torch {folder} {folder}.pt`, then"
        f" `hpcstab doctor {folder}.pt` (its metadata is a pickle: only where you trust it)"
    )
    return Contents("torch.distributed.checkpoint", folder, 0, findings=[unreadable("distributed", text)])


def _plain_pickle(path: Path) -> Contents:
    contents = Contents("pickle", path, path.stat().st_size)
    try:
        with path.open("rb") as file:
            contents.findings += read_pickle(file, str).findings
        text = "is a plain pickle, not a file of torch.save: load it where you trust it, and torch.save what it holds"
        contents.findings.append(unreadable("plain_pickle", text))
    except Trouble as trouble:
        contents.findings += trouble.findings
    return contents


_READERS: dict[Format, Callable[[Path], Contents]] = {
    "zip": read_zip,
    "legacy": read_legacy,
    "tar": read_tar,
    "safetensors": read_safetensors,
    "pickle": _plain_pickle,
}


def _step_of(tree: Any) -> int | None:
    if not isinstance(tree, dict):
        return None
    found = (tree.get(key) for key in ("global_step", "step", "iteration", "n_iter", "iter"))
    return next((value for value in found if isinstance(value, int)), None)
