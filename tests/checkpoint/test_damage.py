"""Whatever one bit or a cut does to a checkpoint, it is refused before anything of it is loaded."""

from __future__ import annotations

import contextlib
import random
import shutil
from pathlib import Path

import pytest
import torch

from hpcstab.checkpoint import read_checkpoint, read_manifest, write_checkpoint
from hpcstab.errors import CheckpointError

FILES = ("state.pt", "manifest.json")
NUM_REGIONS = 10
FLIPS_A_REGION = 20
NUM_CUTS = 60


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A small checkpoint with what a real one has: tensors, nested values, numbers in all notations, text."""
    torch.manual_seed(0)
    network = torch.nn.Sequential(torch.nn.Linear(4, 3), torch.nn.BatchNorm1d(3))
    optimizer = torch.optim.Adam(network.parameters())
    state = {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": 7, "ema": None}
    facts = {"step": 7, "healthy": True, "evaluation": {"value": 1e-05}, "reason": "caf\u00e9", "nonfinite": []}
    folder = tmp_path_factory.mktemp("checkpoints") / "step_00000007"
    write_checkpoint(folder, state, facts)
    return folder


def is_refused(folder: Path) -> bool:
    try:
        read_checkpoint(folder)
    except CheckpointError:
        return True
    return False


def damaged(original: Path, copy: Path, name: str, content: bytes) -> bool:
    """Whether a copy of the checkpoint with other content in one of its files is refused."""
    if not copy.exists():
        shutil.copytree(original, copy)
    (copy / name).write_bytes(content)
    refused = is_refused(copy)
    shutil.copyfile(original / name, copy / name)
    return refused


@pytest.mark.parametrize("name", FILES)
def test_no_flipped_bit_passes_wherever_it_is(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Random bits, as many in each tenth of the file; a sound copy passes."""
    content = (checkpoint / name).read_bytes()
    generator = random.Random(0)
    passed = []
    for region in range(NUM_REGIONS):
        first, behind = (len(content) * edge // NUM_REGIONS for edge in (region, region + 1))
        for _ in range(FLIPS_A_REGION):
            changed = bytearray(content)
            place, bit = generator.randrange(first, behind), generator.randrange(8)
            changed[place] ^= 1 << bit
            if not damaged(checkpoint, tmp_path / "copy", name, bytes(changed)):
                passed.append((place, bit))
    assert passed == []
    assert not is_refused(tmp_path / "copy")


def test_no_flipped_bit_of_a_manifest_passes(checkpoint: Path, tmp_path: Path) -> None:
    """In every byte the bit of a letter's case, and another: 1E-05 for 1e-05 is the same JSON and no less altered."""
    content = (checkpoint / "manifest.json").read_bytes()
    generator = random.Random(2)
    passed = []
    for place, bit in ((place, bit) for place in range(len(content)) for bit in (5, generator.choice((0, 1, 2, 3, 4)))):
        changed = bytearray(content)
        changed[place] ^= 1 << bit
        (tmp_path / "manifest.json").write_bytes(changed)
        with contextlib.suppress(CheckpointError):
            read_manifest(tmp_path)
            passed.append((place, bit))
    assert passed == []


@pytest.mark.parametrize("name", FILES)
def test_no_file_that_is_cut_passes(checkpoint: Path, tmp_path: Path, name: str) -> None:
    """Cut anywhere, to nothing and by its last byte alone, and grown by one."""
    content = (checkpoint / name).read_bytes()
    generator = random.Random(1)
    lengths = {0, 1, len(content) - 1, *(generator.randrange(len(content)) for _ in range(NUM_CUTS))}
    passed = [size for size in lengths if not damaged(checkpoint, tmp_path / "copy", name, content[:size])]
    assert passed == []
    assert damaged(checkpoint, tmp_path / "copy", name, content + b"\n")
