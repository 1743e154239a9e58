"""Copies of a state: bitwise, of the same form, in memory that is used again; and nothing that could not be loaded."""

from __future__ import annotations

from collections import OrderedDict
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.checkpoint.snapshot import Snapshot
from hpcstab.errors import CheckpointError

DEVICES = ["cpu", pytest.param("cuda", marks=pytest.mark.skipif(not torch.cuda.is_available(), reason="no GPU here"))]


@pytest.mark.parametrize("device", DEVICES)
def test_a_copy_is_that_of_its_instant(device: str, tmp_path: Path) -> None:
    """What the training does next is not in it, whenever it is waited for; loaded again it is the state to the bit."""
    network = nn.Sequential(nn.Conv2d(3, 8, 3), nn.BatchNorm2d(8)).to(device, memory_format=torch.channels_last)
    optimizer = torch.optim.Adam(network.parameters())
    network(torch.randn(2, 3, 8, 8, device=device)).square().mean().backward()
    optimizer.step()
    with torch.no_grad():
        network[0].bias[0] = torch.nan  # type: ignore[index, operator]

    def state() -> dict[str, Any]:
        return {"network": network.state_dict(), "optimizer": optimizer.state_dict(), "step": 3, "none": None}

    write_checkpoint(tmp_path / "expected", state(), {})
    copied = Snapshot().take(state())
    with torch.no_grad():
        for parameter in network.parameters():
            parameter.add_(1.0)
    optimizer.param_groups[0]["lr"] = 7.0
    write_checkpoint(tmp_path / "copied", copied(), {})
    expected, found = (read_checkpoint(tmp_path / name)[0] for name in ("expected", "copied"))
    torch.testing.assert_close(found, expected, rtol=0, atol=0, equal_nan=True)
    weight = found["network"]["0.weight"]
    assert weight.stride() == expected["network"]["0.weight"].stride() != weight.contiguous().stride()


def test_memory_is_used_again_unless_the_form_changes() -> None:
    snapshot = Snapshot()
    places = []
    for tensor in (torch.zeros(3), torch.ones(3), torch.ones(4), torch.ones(4, dtype=torch.float64)):
        copied = snapshot.take({"value": tensor})()["value"]
        assert torch.equal(copied, tensor) and copied.dtype == tensor.dtype
        places.append(copied.data_ptr())
    assert places[0] == places[1]
    assert len(set(places[1:])) == 3


def test_tensors_that_share_memory_share_their_copy() -> None:
    """Tied weights are written once, and a second name for the same tensor costs nothing."""
    weight = torch.randn(5, 5)
    copied = Snapshot().take({"a": weight, "b": [weight.detach()], "view": weight[1:]})()
    assert copied["a"] is copied["b"][0]
    assert copied["view"] is not copied["a"]
    assert torch.equal(copied["view"], weight[1:])


def test_plain_values_keep_their_kinds() -> None:
    state = OrderedDict(words=["a", ("b", 1)], flags={1: True, "x": 2.5}, size=torch.Size([2, 3]), number=np.float64(2))
    state._metadata = {"": {"version": 2}}  # type: ignore[attr-defined]
    copied = Snapshot().take({"state": state})()["state"]
    assert copied == state and copied is not state
    assert copied._metadata == state._metadata  # type: ignore[attr-defined]
    assert [type(copied[name]) for name in ("words", "size", "number")] == [list, torch.Size, float]
    assert copied["flags"] is not state["flags"]


def test_what_could_not_be_loaded_again_is_refused_by_name() -> None:
    with pytest.raises(CheckpointError, match=r"state\.network\.0\._extra_state is a range"):
        Snapshot().take({"network": {"0._extra_state": range(3)}})
