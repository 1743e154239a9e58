"""Files that are not what they were, or never were a checkpoint: each in its own plain words."""

from __future__ import annotations

import random
import zipfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file
from torch.distributed.checkpoint import save

from hpcstab.doctor import diagnose, repair
from tests.doctor.making import saved, tensors_of, trained

NO_CHECKPOINTS = {
    "empty": b"",
    "zeros": b"\0" * 4096,
    "html": b"\n<!DOCTYPE html><html><body>Sign in</body></html>",
    "lfs_pointer": b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 1\n",
    "gzip": b"\x1f\x8b\x08" + b"x" * 100,
    "hdf5": b"\x89HDF\r\n\x1a\n" + b"x" * 100,
    "unknown_format": b"loss: nan\n" * 100,
}


@pytest.mark.parametrize("code", NO_CHECKPOINTS)
def test_what_is_no_checkpoint(tmp_path: Path, code: str) -> None:
    (tmp_path / "model.pt").write_bytes(NO_CHECKPOINTS[code])
    diagnosis = diagnose(tmp_path / "model.pt")
    assert [finding.code for finding in diagnosis.findings] == [code]
    assert (diagnosis.verdict, diagnosis.exit_code) == ("unreadable", 3)
    assert repair(tmp_path / "model.pt").exit_code == 3


@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_every_truncation_is_found(tmp_path: Path, form: str) -> None:
    path = tmp_path / "model"
    if form == "safetensors":
        save_file(
            {name: tensor.contiguous() for name, tensor in trained()["model"].items() if "tied" not in name}, path
        )
    else:
        torch.save(trained(), path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    generator = random.Random(0)
    for size in [len(whole) - 1, *(generator.randrange(1, len(whole)) for _ in range(40))]:
        path.write_bytes(whole[:size])
        assert diagnose(path).exit_code == 3, size


def test_flipped_bits(tmp_path: Path) -> None:
    """torch.load notices none of those in tensors; here each is named. In paddings and dates they are harmless."""
    state = trained()
    path = saved(tmp_path, state)
    whole = path.read_bytes()
    inside: set[int] = set()
    with zipfile.ZipFile(path) as archive:
        for entry in archive.infolist():
            start = whole.index(archive.read(entry), entry.header_offset)
            inside |= set(range(start, start + entry.file_size))
    generator = random.Random(0)
    found = 0
    for _ in range(100):
        place, bit = generator.randrange(len(whole)), generator.randrange(8)
        flipped = bytearray(whole)
        flipped[place] ^= 1 << bit
        path.write_bytes(flipped)
        sick = diagnose(path).exit_code != 0
        found += sick
        assert sick or place not in inside, (place, bit)
        if not sick:  # then nothing has changed
            loaded = tensors_of(torch.load(path, weights_only=True))
            assert all(torch.equal(tensor, loaded[name]) for name, tensor in tensors_of(state).items())
    assert found > 50


def test_a_flipped_bit_is_named_by_its_tensor(tmp_path: Path) -> None:
    state = trained()
    path = saved(tmp_path, state)
    weight = state["model"]["head.weight"]
    whole = bytearray(path.read_bytes())
    whole[whole.index(weight.numpy().tobytes()) + 1] ^= 1  # the last digit of one value
    path.write_bytes(whole)
    assert not torch.equal(torch.load(path, weights_only=True)["model"]["head.weight"], weight)  # torch says nothing
    diagnosis = diagnose(path)
    assert {(finding.code, finding.name) for finding in diagnosis.sick} == {
        ("damaged", "model.head.weight"),
        ("damaged", "model.tied.weight"),
    }
    assert repair(path).out is None
    repaired = repair(path, against=saved(tmp_path, state, "sibling.pt"))
    assert repaired.out is not None
    assert torch.equal(torch.load(repaired.out, weights_only=True)["model"]["tied.weight"], weight)


def test_headers_of_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model.safetensors"
    save_file({"a": torch.ones(4), "b": torch.ones(2)}, path)
    whole = path.read_bytes()
    for old, new in (
        (b'"shape":[4]', b'"shape":[5]'),
        (b"[0,16]", b"[0,17]"),
        (b"[16,24]", b"[15,24]"),
        (b'"F32"', b'"F31"'),
        (b'{"a"', b'{,a"'),
    ):
        assert old in whole
        path.write_bytes(whole.replace(old, new, 1))
        assert diagnose(path).exit_code == 3, new
    path.write_bytes(whole + b"more")
    assert diagnose(path).exit_code == 3


def test_containers_in_containers_without_end(tmp_path: Path) -> None:
    path = tmp_path / "deep.pt"
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("deep/data.pkl", b"\x80\x02" + b"]" * 5000 + b"a" * 4999 + b".")
        archive.writestr("deep/version", "3\n")
    assert [finding.code for finding in diagnose(path).findings] == ["too_deep"]


def test_a_zip_that_was_packed_anew(tmp_path: Path) -> None:
    path = saved(tmp_path, {"weight": torch.zeros(1000)})
    with zipfile.ZipFile(path) as archive, zipfile.ZipFile(tmp_path / "x.pt", "w", zipfile.ZIP_DEFLATED) as packed:
        for name in archive.namelist():
            packed.writestr(name, archive.read(name))
    assert [finding.code for finding in diagnose(tmp_path / "x.pt").findings] == ["compressed"]
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as packed:
        packed.writestr("notes.txt", "nothing")
    assert [finding.code for finding in diagnose(tmp_path / "other.zip").findings] == ["no_pickle"]


@pytest.mark.filterwarnings("ignore")
def test_a_distributed_checkpoint_is_named_with_what_to_do(tmp_path: Path) -> None:
    save({"weight": torch.ones(3)}, checkpoint_id=tmp_path / "dcp", no_dist=True)
    diagnosis = diagnose(tmp_path / "dcp")
    assert diagnosis.exit_code == 3
    assert "dcp_to_torch" in diagnosis.findings[0].text


def test_a_tensor_beyond_its_bytes(tmp_path: Path) -> None:
    """A description that does not belong to the bytes beside it: torch refuses it, and so it is unreadable."""
    torch.save({"weight": torch.ones(4)}, tmp_path / "a.pt")
    torch.save({"weight": torch.ones(8)}, tmp_path / "b.pt")
    with (
        zipfile.ZipFile(tmp_path / "a.pt") as short,
        zipfile.ZipFile(tmp_path / "b.pt") as long,
        zipfile.ZipFile(tmp_path / "mixed.pt", "w") as mixed,
    ):
        for name in long.namelist():
            mixed.writestr(name, short.read("a/data/0") if name == "b/data/0" else long.read(name))
    assert [finding.code for finding in diagnose(tmp_path / "mixed.pt").findings] == ["outside"]
