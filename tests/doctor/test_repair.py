"""A repaired copy: what is changed, what is not, what is never done."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcstab.doctor import Repair, diagnose, repair
from hpcstab.errors import CheckpointError
from tests.doctor.making import Network, saved, tensors_of, trained


def written(repaired: Repair) -> dict[str, Any]:
    assert repaired.out is not None
    assert repaired.exit_code == 0
    assert diagnose(repaired.out).verdict == "healthy"
    return dict(torch.load(repaired.out, weights_only=True))


def hows(repaired: Repair) -> dict[str, str]:
    return {change.name: change.how for change in repaired.changes}


def same(first: Tensor, second: Tensor) -> bool:
    """To the bit, NaN included."""
    return first.shape == second.shape and torch.equal(first.view(torch.uint8), second.view(torch.uint8))


@pytest.mark.parametrize("seed", range(20))
def test_all_else_is_the_same_to_the_bit(tmp_path: Path, seed: int) -> None:
    """Statistics, moments and averages poisoned anywhere: all tensors but the named ones are those of the original."""
    state, generator = trained(), torch.Generator().manual_seed(seed)
    tensors = tensors_of(state)
    curable = [name for name in tensors if "running_" in name or name.startswith(("optimizer", "model_ema"))]
    curable = [name for name in curable if tensors[name].is_floating_point() and not name.endswith("mask")]
    for index in torch.randperm(len(curable), generator=generator)[:4].tolist():
        values = tensors[curable[index]]
        values[(0,) * values.dim()] = torch.nan
    path = saved(tmp_path, state, _use_new_zipfile_serialization=bool(seed % 3))
    original = path.read_bytes()
    repaired = repair(path)
    after, changed = tensors_of(written(repaired)), hows(repaired)
    for name, tensor in tensors.items():
        if name.startswith("optimizer.state"):
            dropped = any(name.startswith(f"{owner}.") for owner in changed)
            assert (name not in after) == dropped
            assert dropped or same(after[name].reshape(-1), tensor.reshape(-1))
        elif name not in changed and name.rpartition(".")[0] not in changed:
            assert same(after[name].reshape(-1), tensor.reshape(-1)), name
        elif "running_" in name:
            sound = tensor.isfinite() & tensors[name.rpartition(".")[0] + ".running_mean"].isfinite()
            sound &= tensors[name.rpartition(".")[0] + ".running_var"].isfinite()
            assert torch.equal(after[name][sound], tensor[sound])
    assert path.read_bytes() == original


def test_a_network_computes_again(tmp_path: Path) -> None:
    """The write-up's story: statistics NaN, no valid batch; with a sibling's statistics the function is back."""
    state = trained()
    images = torch.randn(4, 3, 12, 12)
    network = Network().eval()
    network.load_state_dict(state["model"])
    healthy = network(images)
    sibling = saved(tmp_path, state, "before.pt")
    state["model"]["encoder.1.running_mean"][:] = torch.nan
    path = saved(tmp_path, state)
    network.load_state_dict(state["model"])
    assert not network(images).isfinite().any()
    network.load_state_dict(written(repair(path, against=sibling))["model"])
    assert torch.equal(network(images), healthy)
    reset = repair(path, tmp_path / "reset.pt")
    assert hows(reset) == {"model.encoder.1": "reset"}
    assert "ANOTHER FUNCTION" in reset.changes[0].meaning
    network.load_state_dict(written(reset)["model"])
    assert network(images).isfinite().all()


def test_sound_channels_keep_what_was_trained(tmp_path: Path) -> None:
    state = trained()
    before = {name: tensor.clone() for name, tensor in state["model"].items()}
    state["model"]["encoder.1.running_var"][3] = -1
    after = written(repair(saved(tmp_path, state)))["model"]
    for name, fresh in (("encoder.1.running_mean", 0.0), ("encoder.1.running_var", 1.0)):
        expected = before[name].clone()
        expected[3] = fresh
        assert torch.equal(after[name], expected)


OPTIMIZERS = ["Adam", "AdamW", "SGD", "RMSprop", "NAdam", "RAdam", "Adamax", "Adadelta", "ASGD", "Rprop"]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_an_optimizer_goes_on_without_what_was_dropped(tmp_path: Path, name: str) -> None:
    """The dropped parameter steps as with a fresh optimizer, the others as if nothing had been."""
    torch.manual_seed(0)
    make: Any = getattr(torch.optim, name)
    options = {"lr": 0.01} | ({"momentum": 0.9} if name == "SGD" else {})
    first, second = (torch.nn.Parameter(torch.randn(3)) for _ in range(2))
    gradients = torch.randn(6, 2, 3)

    def step(optimizer: torch.optim.Optimizer, index: int) -> None:
        for parameter, gradient in zip((first, second), gradients[index], strict=True):
            parameter.grad = gradient.clone()
        optimizer.step()

    optimizer = make([first, second], **options)
    for index in range(3):
        step(optimizer, index)
    state = optimizer.state_dict()
    kept = {"net": {"a": first.detach().clone(), "b": second.detach().clone()}}
    moment = next(value for value in state["state"][0].values() if isinstance(value, Tensor) and value.dim())
    moment[1] = torch.nan
    path = saved(tmp_path, kept | {"optim": state})
    repaired = repair(path)
    assert hows(repaired) == {"optim.state.0": "dropped"}
    loaded = written(repaired)

    def resumed(state_dict: dict[str, Any]) -> Tensor:
        with torch.no_grad():
            first.copy_(kept["net"]["a"])
            second.copy_(kept["net"]["b"])
        again = make([first, second], **options)
        again.load_state_dict(state_dict)
        step(again, 3)
        return torch.stack([first.detach().clone(), second.detach().clone()])

    got = resumed(loaded["optim"])
    del state["state"][0]
    assert torch.equal(got, resumed(state))
    assert got.isfinite().all()


def test_adagrad_begins_at_zero_in_place(tmp_path: Path) -> None:
    """It makes its state when it is built; an empty one would stop its next step."""
    parameter = torch.nn.Parameter(torch.ones(3))
    optimizer = torch.optim.Adagrad([parameter])
    parameter.grad = torch.ones(3)
    optimizer.step()
    state = optimizer.state_dict()
    state["state"][0]["sum"][1] = torch.inf
    after = written(repair(saved(tmp_path, {"net": {"w": parameter.detach()}, "optimizer": state})))
    assert not any(tensor.any() for tensor in after["optimizer"]["state"][0].values())
    optimizer.load_state_dict(after["optimizer"])
    optimizer.step()
    assert parameter.isfinite().all()


def test_averages_begin_anew_from_the_weights(tmp_path: Path) -> None:
    state = trained()
    state["model_ema"]["module.head.bias"][0] = torch.nan
    state["model_ema"]["module.encoder.1.running_var"][:] = torch.inf
    repaired = repair(saved(tmp_path, state))
    assert hows(repaired) == {
        "model_ema.module.head.bias": "averaged anew",
        "model_ema.module.encoder.1": "averaged anew",
    }
    after = written(repaired)
    assert torch.equal(after["model_ema"]["module.head.bias"], state["model"]["head.bias"])
    assert torch.equal(after["model_ema"]["module.encoder.1.running_var"], state["model"]["encoder.1.running_var"])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), 0.0, -1.0])
def test_a_loss_scale_is_what_a_fresh_scaler_begins_with(tmp_path: Path, bad: float) -> None:
    state = trained()
    state["scaler"]["scale"] = bad
    state["optimizer"]["state"][1]["exp_avg"][:] = torch.nan
    after = written(repair(saved(tmp_path, state)))
    assert after["scaler"] == trained()["scaler"] | {"scale": 65536.0}
    torch.amp.GradScaler("cpu").load_state_dict(after["scaler"])


def test_weights_are_never_made_up(tmp_path: Path) -> None:
    state = trained()
    healthy = saved(tmp_path, state, "epoch_1.pt")
    os.utime(healthy, (1, 1))
    state["model"]["head.weight"][0, 0] = torch.nan
    state["model"]["encoder.1.running_mean"][:] = torch.nan
    path = saved(tmp_path, state, "epoch_2.pt")
    repaired = repair(path)
    assert (repaired.out, repaired.exit_code) == (None, 1)
    assert {finding.name for finding in repaired.left} == {"model.head.weight", "model.tied.weight"}
    assert str(healthy) in repaired.advice[0]
    assert list(tmp_path.iterdir()) == [path, healthy] or set(tmp_path.iterdir()) == {path, healthy}
    after = written(repair(path, against=healthy))
    assert torch.equal(after["model"]["head.weight"], trained()["model"]["head.weight"])


def test_a_sibling_that_is_sick_in_the_same_place_is_of_no_use(tmp_path: Path) -> None:
    state = trained()
    state["model"]["head.bias"][0] = torch.nan
    sibling = saved(tmp_path, state, "sibling.pt")
    repaired = repair(saved(tmp_path, state), against=sibling)
    assert repaired.out is None
    (tmp_path / "broken.pt").write_bytes(b"PK\x03\x04")
    with pytest.raises(CheckpointError, match="name a healthy sibling") as raised:
        repair(saved(tmp_path, state), against=tmp_path / "broken.pt")
    assert raised.value.exit_code == 2


def test_where_it_is_written(tmp_path: Path) -> None:
    state = trained()
    state["model"]["encoder.1.running_mean"][0] = torch.nan
    path = saved(tmp_path, state, "wavessm_x.pth")
    assert repair(path).out == tmp_path / "wavessm_x_FIXED.pth"
    assert repair(path).out == tmp_path / "wavessm_x_FIXED.pth"  # its own output of the same content is no obstacle
    out = tmp_path / "new" / "folder" / "x.pt"
    assert repair(path, out).out == out
    (tmp_path / "wavessm_x_FIXED.pth").write_bytes(b"something else")
    for place, words in ((None, "is there already"), (path, "is the original")):
        with pytest.raises(CheckpointError, match=words) as raised:
            repair(path, place)
        assert raised.value.exit_code == 2
    assert (tmp_path / "wavessm_x_FIXED.pth").read_bytes() == b"something else"
    assert not list(tmp_path.glob(".*"))


def test_a_healthy_one_needs_none(tmp_path: Path) -> None:
    repaired = repair(saved(tmp_path, trained()))
    assert (repaired.out, repaired.exit_code) == (None, 0)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt"]


def test_a_learning_rate_is_taken_from_a_sibling_alone(tmp_path: Path) -> None:
    state = trained()
    sibling = saved(tmp_path, state, "sibling.pt")
    state["optimizer"]["param_groups"][0]["lr"] = float("nan")
    path = saved(tmp_path, state)
    assert repair(path).out is None
    assert written(repair(path, against=sibling))["optimizer"]["param_groups"][0]["lr"] == 1e-3


def test_what_differs_from_a_sibling(tmp_path: Path) -> None:
    state = trained()["model"]
    sibling = saved(tmp_path, {"net": state}, "sibling.pt")
    ours = {name: tensor.clone() for name, tensor in state.items()}
    ours["head.bias"] = ours["head.bias"][:4]
    ours["encoder.3.bias"] += 1e3
    ours["encoder.1.running_mean"][0] = torch.nan
    ours["more"] = ours.pop("encoder.0.bias")
    found = {(f.code, f.name, f.severity): f.text for f in diagnose(saved(tmp_path, ours), against=sibling).findings}
    assert {key for key in found if key[0] != "mask"} == {
        ("other_shape", "head.bias", "sick"),
        ("missing", "net.encoder.0.bias", "sick"),
        ("extra", "more", "note"),
        ("drift", "encoder.3.bias", "note"),
        ("nan", "encoder.1.running_mean", "sick"),
    }
    assert found["nan", "encoder.1.running_mean", "sick"].endswith("finite in the sibling")
