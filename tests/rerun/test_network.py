"""What changes the network is named and refused before anything is made; weights are found in anybody's files."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from hpcstab.checkpoint import read_checkpoint
from hpcstab.errors import CheckpointError, ConfigError
from hpcstab.metrics import read_evals
from hpcstab.rundir import RunDir
from tests.rerun.conftest import Begin, event, plan, poison, train


@pytest.mark.parametrize(
    ("fixes", "settings", "to_blame"),
    [
        (("gdn_bounded",), (), "--with gdn_bounded"),
        (("hardened", "gdn_bounded", "small_lambda"), (), "--with gdn_bounded"),
        (("hardened",), ("network.latent_dim=8", "optimizer.lr=1e-3"), "--set network.latent_dim"),
        (("gdn_bounded",), ("network.latent_dim=8",), "--with gdn_bounded, --set network.latent_dim"),
    ],
)
def test_the_change_that_gives_another_network_is_named(
    parent: RunDir, fixes: tuple[str, ...], settings: tuple[str, ...], to_blame: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        plan(parent, "4", *fixes, settings=settings)
    message = str(caught.value)
    assert message.startswith(f"{to_blame}: gives another network (")
    assert "more)" in message or "instead of" in message
    assert "hpcstab submit swae3d --variants after" in message and "--seeds 0 --scale tiny" in message


def test_code_that_changed_is_told_from_a_change_of_the_request(
    parent: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    from hpcstab.models.swae3d.task import Task

    network = Task.network
    monkeypatch.setattr(Task, "network", lambda task: torch.nn.Sequential(network(task)))
    with pytest.raises(ConfigError, match=r"another network than its config gives here: .* was the code .* changed"):
        plan(parent, "4")


def bare(weights: dict[str, Tensor]) -> Any:
    return weights


def wrapped(weights: dict[str, Tensor]) -> Any:
    return {f"module.{name}": tensor for name, tensor in weights.items()}


def nested(weights: dict[str, Tensor]) -> Any:
    optimizer = {"state": {0: {"exp_avg": torch.zeros(2)}}, "param_groups": [{"params": [0]}]}
    return {"epoch": 3, "model": {"state_dict": weights}, "optimizer": optimizer}


def lightning(weights: dict[str, Tensor]) -> Any:
    return {"state_dict": {f"model.net.{name}": tensor for name, tensor in weights.items()}, "callbacks": {}}


@pytest.mark.parametrize(
    ("layout", "told"),
    [
        (bare, ""),
        (wrapped, ", 'module.' taken off their names"),
        (nested, ", at 'model.state_dict'"),
        (lightning, ", at 'state_dict', 'model.net.' taken off their names"),
    ],
)
def test_weights_of_anybody(
    parent: RunDir, begin: Begin, tmp_path: Path, layout: Callable[[dict[str, Tensor]], Any], told: str
) -> None:
    weights = read_checkpoint(parent.checkpoint(6))[0]["network"]
    path = tmp_path / "theirs.pt"
    torch.save(layout(weights), path)
    rerun = plan(parent, str(path))
    assert rerun.told == (
        f"begins at step 0 with the {len(weights)} tensors of {path}{told}",
        "starts anew: everything but the weights",
    )
    run = begin(rerun)
    assert run.identity()["label"].startswith("after (weights of theirs.pt)")
    state = read_checkpoint(run.checkpoint(0))[0]
    assert state["network"].keys() == weights.keys()
    assert all(torch.equal(tensor, weights[name]) for name, tensor in state["network"].items())
    assert (state["step"], state["update"], state["optimizer"]["state"]) == (0, 0, {})


def test_a_training_from_weights_begins_at_step_0_with_their_score(parent: RunDir, begin: Begin) -> None:
    elsewhere = parent.checkpoints.rename(parent.path.parent / "elsewhere")
    run = begin(plan(parent, str(elsewhere / "step_00000006")))
    assert train(run) == "completed"
    assert event(run, "branched")["data"]["weights_only"]
    theirs, ours = read_evals(parent.evals_csv), read_evals(run.evals_csv)
    assert [row["step"] for row in ours] == ["0", "2", "4", "6"]
    assert ours[0]["psnr"] == theirs[-1]["psnr"]


def test_sick_weights_of_anybody_go_through_the_doctor(parent: RunDir, begin: Begin, tmp_path: Path) -> None:
    state = read_checkpoint(parent.checkpoint(6))[0]
    poison(state, "running_mean")
    torch.save(state["network"], tmp_path / "sick.pt")
    run = begin(plan(parent, str(tmp_path / "sick.pt")))
    assert run.identity()["label"].startswith("after (weights of sick.pt, repaired)")
    assert all(t.isfinite().all() for t in read_checkpoint(run.checkpoint(0))[0]["network"].values())
    poison(state, "to_latent.weight")
    torch.save(state["network"], tmp_path / "sicker.pt")
    with pytest.raises(CheckpointError, match=r"sicker.pt is sick .*the doctor cannot make it sound"):
        plan(parent, str(tmp_path / "sicker.pt"))


def test_files_that_are_of_no_use(parent: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "notes.pt"
    path.write_text("no checkpoint")
    with pytest.raises(CheckpointError, match=r"notes.pt is unreadable"):
        plan(parent, str(path))
    torch.save({"scheduler": {"last_epoch": 3}}, path)
    with pytest.raises(CheckpointError, match=r"notes.pt: holds no weights"):
        plan(parent, str(path))
    torch.save({"encoder.to_latent.weight": torch.zeros(2, 2)}, path)
    with pytest.raises(CheckpointError, match=r"its weights are of another network: .* is new and .* more"):
        plan(parent, str(path))
