"""Weights for a network out of anybody's checkpoint: found in it by its structure, and matched by name."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from hpcstab.doctor.diagnose import examine
from hpcstab.doctor.examined import Examined
from hpcstab.doctor.parts import Located
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError
from hpcstab.rerun.fit import Layout, misfit_text, misfits

_OF_A_NETWORK = ("weights", "batchnorm")


@dataclass(frozen=True)
class Weights:
    """A state dict that fits; ``place``: where in the file it was; ``prefix``: what was taken off all its names."""

    state_dict: Mapping[str, Tensor]
    place: str
    prefix: str


def read_weights(path: Path, network: Layout) -> Weights:
    """The state dict in a checkpoint file, or in a checkpoint folder of another run, that is one of the network.

    It is read tensor by tensor, and nothing in the file is run.

    Raises:
        CheckpointError: there is none; says how the nearest one differs.
    """
    examined = examine(path)
    nearest: tuple[str, list[str]] | None = None
    for place, tensors in _state_dicts(examined):
        for prefix in _common_prefixes(list(tensors)):
            named = {name.removeprefix(prefix): located for name, located in tensors.items()}
            wrong = misfits({name: tuple(located.tensor.shape) for name, located in named.items()}, network)
            if not wrong:
                with examined.contents.open() as file:
                    return Weights({name: file.read(each.tensor) for name, each in named.items()}, place, prefix)
            if nearest is None or len(wrong) < len(nearest[1]):
                nearest = (place, wrong)
    if nearest is None:
        raise CheckpointError(f"{path}: holds no weights", exit_code=EXIT_WRONG_REQUEST)
    where = f" at '{nearest[0]}'" if nearest[0] else ""
    raise CheckpointError(
        f"{path}: its weights{where} are of another network: {misfit_text(nearest[1])}", exit_code=EXIT_WRONG_REQUEST
    )


def content_digest(path: Path) -> str:
    """SHA-256 of a file; of a checkpoint folder that of its state."""
    with (path / "state.pt" if path.is_dir() else path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _state_dicts(examined: Examined) -> Iterator[tuple[str, dict[str, Located]]]:
    """(place, tensors by their own name) of each mapping that holds a network's tensors."""
    found: dict[str, dict[str, Located]] = {}
    for name, located in examined.layout.tensors.items():
        if located.part in _OF_A_NETWORK:
            found.setdefault(name.removesuffix(located.own_name).rstrip("."), {})[located.own_name] = located
    yield from found.items()


def _common_prefixes(names: list[str]) -> Iterator[str]:
    """Nothing, and what all names begin with, segment by segment: ``module.``, ``module.model.``."""
    prefix = ""
    while True:
        yield prefix
        segment, dot, _ = names[0].removeprefix(prefix).partition(".")
        prefix = f"{prefix}{segment}."
        if not dot or not all(name.startswith(prefix) for name in names):
            return
