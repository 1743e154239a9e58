"""A capsule of a loop that is not ours, explained: with its model and its loss, by the command's words."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

import hpcstab
from hpcstab.cli import replay as verb
from hpcstab.errors import CheckpointError, ConfigError
from tests.conftest import MakeRun

BAD = 5


class LogOfRow(nn.Module):
    """The log of the first feature, which in one batch is negative; ``shift`` is a buffer that no state dict holds."""

    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("shift", torch.zeros(()), persistent=False)
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, inputs: Tensor) -> Tensor:
        self.shift += 1.0
        return self.weight * inputs + inputs[:, :1].log() + self.shift


def parts(**options: Any) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    model = nn.Sequential(LogOfRow(), nn.Dropout(0.2), nn.Linear(3, 1))
    return model, torch.optim.AdamW(model.parameters(), lr=0.01, fused=True)


def batches() -> list[tuple[Tensor, Tensor]]:
    generator = torch.Generator().manual_seed(1)
    found = [(torch.rand(6, 3, generator=generator) + 0.5, torch.rand(6, 1, generator=generator)) for _ in range(8)]
    found[BAD][0][2, 0] = -1.0
    return found


def loss_of(model: nn.Module, batch: Any) -> Tensor:
    inputs, targets = batch
    return nn.functional.mse_loss(model(inputs), targets)


def refused(folder: Path, accumulate: int = 1) -> Path:
    """The capsule of the step with the negative number."""
    model, optimizer = parts()
    hardened = hpcstab.harden(model, optimizer, capsules=folder)
    for index, batch in hardened.batches(enumerate(batches())):
        loss = loss_of(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        if (index + 1) % accumulate == 0:
            hardened.step(loss)
            optimizer.zero_grad()
    (capsule,) = folder.iterdir()
    return capsule


def test_the_operation_is_named_and_so_is_what_to_change(tmp_path: Path) -> None:
    """Anew, with other weights and dropout draws: the figures are those of the loop to the bit."""
    capsule = refused(tmp_path)
    torch.manual_seed(99)
    model = parts()[0]
    for parameter in model.parameters():
        parameter.data.fill_(7.0)
    replayed = hpcstab.replay(capsule, model, lambda model, item: loss_of(model, item[1]))
    found = replayed.as_json()
    assert found["same_as_recorded"] is True
    assert found["creator"]["operation"] == "aten.log.default"
    assert (found["creator"]["module"], found["sample_ids"]) == ("0", ["2"])
    assert found["advice"]["verdict"] == "layer"
    text = str(replayed)
    assert text.startswith(f"step      {BAD} of {capsule} (update {BAD}, rank 0), here on cpu\n")
    assert "test_loop_replay.py" in text and ".log()" in text
    assert "without sample 2" in text and "could not be run: the optimizer's state knows of no update" in text
    again = hpcstab.replay(capsule, *[model, lambda model, item: loss_of(model, item[1]), parts()[1]])
    assert again.as_json()["same_as_recorded"] is True


def test_with_its_optimizer_smaller_steps_are_asked_for(tmp_path: Path) -> None:
    model, optimizer = parts()
    found = hpcstab.replay(refused(tmp_path), model, lambda model, item: loss_of(model, item[1]), optimizer).as_json()
    assert {rerun["name"]: rerun["error"] for rerun in found["reruns"]} == dict.fromkeys(
        ("again", "fp64", "without", "halved", "undone")
    )


def test_accumulated_batches_run_as_one_step(tmp_path: Path) -> None:
    model, _ = parts()
    found = hpcstab.replay(refused(tmp_path, 4), model, lambda model, item: loss_of(model, item[1])).as_json()
    assert found["creator"]["operation"] == "aten.log.default"
    assert found["same_as_recorded"] is True
    assert not math.isfinite(float(found["grad_norm"]))


def test_under_autocast_full_precision_is_asked_for(tmp_path: Path) -> None:
    torch.manual_seed(0)
    model = nn.Linear(3, 1)
    optimizer = torch.optim.SGD(model.parameters(), lr=0.1, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    hardened = hpcstab.harden(model, optimizer, scaler=scaler, capsules=tmp_path)
    for batch in hardened.batches([torch.ones(2, 3), torch.full((2, 3), 7e4)]):
        with torch.autocast("cpu", torch.float16):
            loss = model(batch).float().mean()
        scaler.scale(loss).backward()  # type: ignore[no-untyped-call]
        hardened.step(loss)
        optimizer.zero_grad()
    replayed = hpcstab.replay(
        tmp_path / "step_00000001", model, lambda model, batch: model(batch).float().mean(), dtype="fp16"
    )
    assert replayed.as_json()["same_as_recorded"] is True
    assert replayed.as_json()["advice"]["verdict"] == "precision"


def test_the_command_says_how_to_call_it(tmp_path: Path) -> None:
    capsule = refused(tmp_path)
    with pytest.raises(CheckpointError) as caught:
        verb.replay(str(capsule))
    assert f'print(hpcstab.replay("{capsule}", model, loss, optimizer))' in str(caught.value)
    assert "\n" not in str(caught.value)


def test_what_does_not_fit_is_said_so(tmp_path: Path, train_run: MakeRun) -> None:
    capsule = refused(tmp_path / "capsules")
    with pytest.raises(CheckpointError, match="does not fit this model or optimizer"):
        hpcstab.replay(capsule, nn.Linear(2, 2), loss_of)
    with pytest.raises(ConfigError, match="'fp8' is none of fp32, bf16, fp16"):
        hpcstab.replay(capsule, parts()[0], loss_of, dtype="fp8")  # type: ignore[arg-type]
    with pytest.raises(CheckpointError, match="the step cannot be run here: TypeError"):
        hpcstab.replay(capsule, parts()[0], lambda model, item: model(item[1]["x"]).mean())
    run = train_run("swae3d", "before+first_batch_init")
    with pytest.raises(CheckpointError, match="needs no code of yours"):
        hpcstab.replay(next(run.capsules.iterdir()), parts()[0], loss_of)
