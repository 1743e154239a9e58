"""Weights for a network out of anybody's checkpoint: found in it, and matched by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError
from hpcstab.rerun.fit import Layout, layout_of, misfit_text, misfits

_PREFIXES = ("", "module.", "model.", "_orig_mod.", "network.", "net.")
_MAX_DEPTH = 4


@dataclass(frozen=True)
class Weights:
    """A state dict that fits; ``place`` says where in the file it was, ``prefix`` what was taken off its names."""

    state_dict: Mapping[str, Tensor]
    place: str
    prefix: str


def find_weights(content: object, network: Layout, path: Path) -> Weights:
    """The mapping of tensors in ``content`` that is a state dict of the network, but for a prefix that all names have.

    Raises:
        CheckpointError: there is none; says how the nearest one differs.
    """
    nearest: tuple[int, str, list[str]] | None = None
    for place, candidate in _state_dicts(content):
        for prefix in _PREFIXES:
            if not all(name.startswith(prefix) for name in candidate):
                continue
            named = {name.removeprefix(prefix): tensor for name, tensor in candidate.items()}
            wrong = misfits(layout_of(named), network)
            if not wrong:
                return Weights(named, place, prefix)
            if nearest is None or len(wrong) < nearest[0]:
                nearest = (len(wrong), place, wrong)
    if nearest is None:
        raise CheckpointError(
            f"{path}: holds no state dict, a mapping of names to tensors", exit_code=EXIT_WRONG_REQUEST
        )
    where = f" at '{nearest[1]}'" if nearest[1] else ""
    raise CheckpointError(
        f"{path}: its weights{where} are of another network: {misfit_text(nearest[2])}", exit_code=EXIT_WRONG_REQUEST
    )


def read_file(path: Path) -> object:
    """What a checkpoint file holds, read without running code from it.

    Raises:
        CheckpointError: it is not there, is no checkpoint, or could only be read by running code from it.
    """
    if not path.is_file():
        raise CheckpointError(f"--from '{path}': there is no such file", exit_code=EXIT_WRONG_REQUEST)
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except ImportError:
        raise CheckpointError(f"{path}: pip install safetensors, which reads it") from None
    except Exception as error:
        raise CheckpointError(
            f"{path}: cannot be read as a checkpoint: {str(error).splitlines()[0]}; `hpcstab doctor {path}` says more",
            exit_code=EXIT_WRONG_REQUEST,
        ) from None


def file_digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_dicts(content: object, place: str = "", depth: int = 0) -> Iterator[tuple[str, Mapping[str, Tensor]]]:
    """Mappings of names to tensors, the outer before the inner."""
    if not isinstance(content, Mapping) or depth > _MAX_DEPTH:
        return
    tensors = {str(name): value for name, value in content.items() if isinstance(value, Tensor)}
    if tensors and len(tensors) == len(content):
        yield place, tensors
    for name, value in content.items():
        yield from _state_dicts(value, f"{place}.{name}" if place else str(name), depth + 1)
