"""The same numbers in every format that PyTorch trainings leave: read without loading, the same findings in all."""

from __future__ import annotations

import argparse
import io
import pickle
import struct
import tarfile
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from hpcstab.doctor import diagnose, repair
from tests.doctor.making import Network, saved, tensors_of, trained

POISONED = {
    ("nan", "encoder.1.running_mean", (2,)),
    ("negative_variance", "encoder.4.running_var", None),
    ("inf", "encoder.3.weight", (1, 2, 0, 1)),
}


def poisoned(state: dict[str, Tensor]) -> dict[str, Tensor]:
    state["encoder.1.running_mean"][2] = torch.nan
    state["encoder.4.running_var"][:2] = -1
    state["encoder.3.weight"][1, 2, 0, 1] = torch.inf
    return state


def bare(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path)


def legacy(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path, _use_new_zipfile_serialization=False)


def protocol_5(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path, pickle_protocol=5)


def legacy_protocol_4(path: Path, state: dict[str, Tensor]) -> None:
    torch.save(state, path, pickle_protocol=4, _use_new_zipfile_serialization=False)


def safetensors(path: Path, state: dict[str, Tensor]) -> None:
    del state["tied.weight"]  # the library refuses tensors that share memory
    save_file({name: tensor.contiguous() for name, tensor in state.items()}, path)


def pickled_module(path: Path, state: dict[str, Tensor]) -> None:
    network = Network()
    network.load_state_dict(state)
    torch.save(network, path)


def pickled_classes(path: Path, state: dict[str, Tensor]) -> None:
    torch.save({**state, "args": argparse.Namespace(lr=np.float64(0.1), out=Path("x"))}, path)


def script(path: Path, state: dict[str, Tensor]) -> None:
    network = Network()
    network.load_state_dict(state)
    torch.jit.save(torch.jit.trace(network.eval(), torch.randn(2, 3, 12, 12)), path)


def tar(path: Path, state: dict[str, Tensor]) -> None:
    """As torch 0.1 wrote it; no torch of today does."""
    storages, tensors, members = io.BytesIO(), io.BytesIO(), {}
    for number, (name, tensor) in enumerate(state.items()):
        tensor = tensor.contiguous()
        members[name] = number
        pickle.dump((number, "cpu", STORAGES[tensor.dtype]), storages, 2)
        storages.write(struct.pack("<q", tensor.numel()) + tensor.numpy().tobytes())
        pickle.dump((number, number, torch.FloatTensor), tensors, 2)
        stride = tensor.stride()
        tensors.write(struct.pack(f"<ii{2 * tensor.dim() + 1}q", tensor.dim(), 0, *tensor.shape, *stride, 0))
    pickle.dump([], storages, 2)

    class Pickler(pickle.Pickler):
        def persistent_id(self, value: Any) -> Any:
            return str(value.number) if isinstance(value, Reference) else None

    text = io.BytesIO()
    Pickler(text, 2).dump(OrderedDict((name, Reference(number)) for name, number in members.items()))
    with tarfile.open(path, "w:", format=tarfile.PAX_FORMAT) as archive:
        for member, content in (
            ("sys_info", pickle.dumps({}, 2)),
            ("pickle", text.getvalue()),
            ("tensors", pickle.dumps(len(state), 2) + tensors.getvalue()),
            ("storages", pickle.dumps(len(state), 2) + storages.getvalue()),
        ):
            info = tarfile.TarInfo(member)
            info.size = len(content)
            archive.addfile(info, io.BytesIO(content))


STORAGES = {torch.float32: torch.FloatStorage, torch.int64: torch.LongStorage}


class Reference:
    """Stands for a tensor until it is pickled as a number."""

    def __init__(self, number: int) -> None:
        self.number = number


FORMATS = [bare, legacy, protocol_5, legacy_protocol_4, safetensors, pickled_module, pickled_classes, script, tar]


@pytest.mark.filterwarnings("ignore")  # of torch.jit and of typed storages, which old files are made of
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_tells_the_same(tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]) -> None:
    state = trained()["model"]
    write(tmp_path / "healthy", {name: tensor.clone() for name, tensor in state.items()})
    write(tmp_path / "sick", poisoned(state))
    assert diagnose(tmp_path / "healthy").verdict == "healthy"
    found = {(finding.code, finding.name, finding.first_index) for finding in diagnose(tmp_path / "sick").sick}
    assert found == POISONED


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("write", FORMATS)
def test_every_format_is_repaired_from_a_sibling(
    tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]
) -> None:
    state = trained()["model"]
    sibling = saved(tmp_path, {"net": {name: tensor.clone() for name, tensor in state.items()}}, "sibling.pt")
    write(tmp_path / "sick.bin", poisoned(state))
    repaired = repair(tmp_path / "sick.bin", against=sibling)
    assert repaired.out == tmp_path / "sick_FIXED.bin"
    assert repaired.after is not None
    assert repaired.after.verdict == "healthy"
    assert {(change.how, change.name) for change in repaired.changes} == {
        ("restored", name) for name in ("encoder.1", "encoder.4", "encoder.3.weight")
    }


@pytest.mark.filterwarnings("ignore:Detected pickle protocol")
@pytest.mark.parametrize("write", [bare, legacy, protocol_5, legacy_protocol_4])
def test_torch_loads_what_was_written(tmp_path: Path, write: Callable[[Path, dict[str, Tensor]], None]) -> None:
    state = poisoned(trained()["model"])
    write(tmp_path / "model.pt", state)
    out = repair(tmp_path / "model.pt", against=saved(tmp_path, trained()["model"], "sibling.pt")).out
    assert out is not None
    healthy = trained()["model"]
    loaded = torch.load(out, weights_only=write in (bare, legacy), mmap=write in (bare, protocol_5))
    assert loaded.keys() == healthy.keys()
    for name, tensor in loaded.items():
        assert torch.equal(tensor, healthy[name]) or name == "mask"
        assert tensor.stride() == healthy[name].stride()


def test_what_stands_around_the_tensors_does_not_matter(tmp_path: Path) -> None:
    state = poisoned(trained()["model"])
    diagnosis = diagnose(saved(tmp_path, {"deep": [{"er": {"anything": state}}], "n_iter": 4500}))
    assert {finding.name for finding in diagnosis.sick} == {f"deep.0.er.anything.{name}" for _, name, _ in POISONED}
    assert diagnosis.step == 4500


def test_names_that_meet(tmp_path: Path) -> None:
    """Paths are told apart by dots; tensors whose paths look alike are looked at all the same."""
    bad = torch.tensor([torch.nan])
    diagnosis = diagnose(saved(tmp_path, {"a": {"b": bad}, "a.b": bad.clone(), 1: bad.clone(), "1": torch.ones(1)}))
    assert [finding.name for finding in diagnosis.sick] == ["a.b", "a.b (2)", "1"]


@pytest.mark.filterwarnings("ignore:Sparse CSR", "ignore:torch.quantize")
def test_unusual_tensors_are_healthy(tmp_path: Path) -> None:
    """Views with gaps, transposed, expanded, shared, sparse, complex, quantized, of rare types, empty, on no device."""
    values = torch.randn(10, 10)
    with_gap = torch.full((4, 4), torch.nan)
    with_gap[:, ::2] = 1.0
    state = {
        "gaps": with_gap[:, ::2],
        "transposed": values.t(),
        "view": values[3:5],
        "expanded": torch.ones(1).expand(5),
        "sparse": torch.eye(4).to_sparse(),
        "rows": torch.eye(4).to_sparse_csr(),
        "complex": torch.randn(3, dtype=torch.complex64),
        "fp8": torch.randn(8).to(torch.float8_e4m3fn),
        "unsigned": torch.zeros(3, dtype=torch.uint16),
        "quantized": torch.quantize_per_tensor(torch.randn(4), 0.1, 0, torch.qint8),
        "empty": torch.zeros(0, 3),
        "parameter": nn.Parameter(torch.ones(2)),
        "nowhere": torch.zeros(2, device="meta"),
    }
    diagnosis = diagnose(saved(tmp_path, state))
    assert diagnosis.verdict == "healthy"
    assert diagnosis.num_tensors == 15


@pytest.mark.parametrize("options", [{}, {"_use_new_zipfile_serialization": False}])
def test_a_poisoned_unusual_tensor_is_named_with_its_index(tmp_path: Path, options: dict[str, Any]) -> None:
    base = torch.randn(6, 8)
    base[4, 2] = torch.nan
    state = {
        "gaps": base[:, ::2],
        "transposed": base.t(),
        "row": base[4],
        "other_row": base[3],
        "complex": torch.tensor([1, complex(0, float("inf"))]),
        "fp8": torch.tensor([1.0, float("nan")]).to(torch.float8_e4m3fn),
        "sparse": torch.tensor([[0.0, float("nan")]]).to_sparse(),
    }
    found = {f.name: f.first_index for f in diagnose(saved(tmp_path, state, **options)).sick}
    expected = {"gaps": (4, 1), "transposed": (2, 4), "row": (2,), "complex": (1,), "fp8": (1,), "sparse.values": (0,)}
    assert found == expected


def test_lightning_shaped(tmp_path: Path) -> None:
    """What Lightning 2 writes, with a namespace and a NumPy number that weights_only refuses."""
    whole = trained()
    whole["model"]["encoder.1.running_var"][0] = torch.nan
    whole["optimizer"]["state"][0]["exp_avg"][0] = torch.inf
    checkpoint = {
        "epoch": 1,
        "global_step": 250,
        "pytorch-lightning_version": "2.6.0",
        "state_dict": whole["model"],
        "loops": {"fit_loop": {"state_dict": {}, "epoch_progress": {"total": {"ready": 2}}}},
        "callbacks": {"EarlyStopping{'monitor': 'val'}": {"best_score": torch.tensor(float("inf")), "wait_count": 0}},
        "optimizer_states": [whole["optimizer"]],
        "lr_schedulers": [{"last_epoch": 1, "_last_lr": [1e-3]}],
        "MixedPrecision": whole["scaler"],
        "hparams_name": "args",
        "hyper_parameters": argparse.Namespace(lr=np.float64(1e-3)),
    }
    path = saved(tmp_path, checkpoint, "last.ckpt")
    diagnosis = diagnose(path)
    assert (diagnosis.kind, diagnosis.step) == ("Lightning checkpoint", 250)
    assert [(finding.part, finding.name) for finding in diagnosis.sick] == [
        ("batchnorm", "state_dict.encoder.1.running_var"),
        ("optimizer", "optimizer_states.0.state.0.exp_avg"),
    ]
    classes = next(finding.text for finding in diagnosis.findings if finding.code == "unknown_classes")
    assert "argparse.Namespace" in classes
    assert "scalar" in classes
    out = repair(path).out
    assert out is not None
    written = torch.load(out, weights_only=False)
    assert written["hyper_parameters"] == checkpoint["hyper_parameters"]
    assert written["optimizer_states"][0]["state"][0] == {}
    assert tensors_of(written).keys() == {
        name for name in tensors_of(checkpoint) if not name.startswith("optimizer_states.0.state.0.")
    }
