"""Checkpoints of hpcstab's own runs, written by the real trainer."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import CheckpointStore, read_checkpoint, write_checkpoint
from hpcstab.doctor import checkpoints_in, diagnose, repair
from hpcstab.errors import CheckpointError
from hpcstab.execute import reestimate
from hpcstab.rundir import RunDir
from tests.conftest import MakeRun

FORMAT_KEYS = ("format_version", "state_bytes", "state_sha256")


@pytest.fixture(scope="session")
def after_run(tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """swae3d's `after`, the BatchNorm model there is, with an average; one training for all tests of this file."""
    from hpcstab.config import load_experiment, parse_overrides, resolve
    from hpcstab.execute import execute
    from hpcstab.identity import create_run
    from hpcstab.rundir import begin_attempt

    resolved = resolve(load_experiment("swae3d"), "after", "tiny", parse_overrides(["trainer.ema_decay=0.9"]))
    run = create_run(tmp_path_factory.mktemp("runs"), load_experiment("swae3d"), resolved, 0)
    assert execute(run, begin_attempt(run, {"node": "test"})).state == "completed"
    return run


@pytest.fixture
def run(after_run: RunDir, tmp_path: Path) -> RunDir:
    shutil.copytree(after_run.path, tmp_path / "m" / "v" / after_run.path.name)
    return RunDir(tmp_path / "m" / "v" / after_run.path.name)


def newest(run: RunDir) -> Path:
    return max(run.checkpoints.glob("step_*"))


def poison(folder: Path, change: Callable[[dict[str, Any]], None]) -> dict[str, Any]:
    """Write a checkpoint anew with something changed, as a sick training would; the state that it has now."""
    state, manifest = read_checkpoint(folder)
    change(state)
    facts = {key: value for key, value in manifest.items() if key not in FORMAT_KEYS} | {"healthy": False}
    write_checkpoint(folder, state, facts)
    return state


def statistics(state: dict[str, Any]) -> list[str]:
    return [name.removesuffix(".running_mean") for name in state["network"] if name.endswith("running_mean")]


def test_a_run_means_its_checkpoints(run: RunDir) -> None:
    folders = sorted(run.checkpoints.glob("step_*"))
    assert len(folders) >= 2
    assert checkpoints_in(run.path) == checkpoints_in(run.checkpoints) == folders
    assert checkpoints_in(folders[0] / "state.pt") == [folders[0]]
    for folder in folders:
        diagnosis = diagnose(folder)
        assert (diagnosis.verdict, diagnosis.kind) == ("healthy", "hpcstab checkpoint")
        assert f"step_{diagnosis.step:08d}" == folder.name
    with pytest.raises(CheckpointError, match="name one"):
        diagnose(run.path)


def test_poisoned_statistics_are_estimated_anew(run: RunDir) -> None:
    """The write-up's cascade: exactly the poisoned buffers are named, and the copy computes nearly the same."""
    folder = newest(run)
    healthy, _ = read_checkpoint(folder)
    layers = statistics(healthy)

    def change(state: dict[str, Any]) -> None:
        for layer in layers:
            state["network"][f"{layer}.running_mean"][:] = torch.nan

    poison(folder, change)
    diagnosis = diagnose(folder)
    assert [finding.name for finding in diagnosis.sick] == [f"network.{layer}.running_mean" for layer in layers]
    repaired = repair(folder, reestimate=reestimate)
    assert repaired.out == folder.with_name(f"{folder.name}_FIXED")
    assert [(change.name, change.how) for change in repaired.changes] == [
        (f"network.{layer}", "reestimated") for layer in layers
    ]
    state, manifest = read_checkpoint(repaired.out)
    assert manifest["healthy"]
    assert manifest["nonfinite"] == []
    assert (manifest["step"], manifest["repaired_from"]) == (diagnosis.step, folder.name)
    assert [change["name"] for change in manifest["repairs"]] == [f"network.{layer}" for layer in layers]
    for layer in layers:
        for name in (f"{layer}.running_mean", f"{layer}.running_var"):
            scale = healthy["network"][f"{layer}.running_var"].sqrt().mean()
            assert (state["network"][name] - healthy["network"][name]).abs().mean() < scale
    for name, tensor in healthy["network"].items():
        if "running_" not in name:
            assert torch.equal(state["network"][name], tensor)


def test_no_resume_takes_a_fixed_one_by_itself(run: RunDir) -> None:
    folder = newest(run)
    poison(folder, lambda state: state["ema"].update({name: t * torch.nan for name, t in state["ema"].items()}))
    index = (run.checkpoints / "index.json").read_text()
    assert repair(folder).out is not None
    assert (run.checkpoints / "index.json").read_text() == index
    restored = CheckpointStore(run).newest("cpu")
    assert restored is not None
    assert restored.folder != folder
    assert "FIXED" not in restored.folder.name


def test_what_comes_from_another_checkpoint_of_the_run(run: RunDir) -> None:
    """Without the model statistics come from the nearest healthy one, moments and averages too; weights do not."""
    folder, earlier = newest(run), sorted(run.checkpoints.glob("step_*"))[-2]
    layer = statistics(read_checkpoint(folder)[0])[0]

    def change(state: dict[str, Any]) -> None:
        state["network"][f"{layer}.running_var"][0] = -1
        state["optimizer"]["state"][0]["exp_avg"][:] = torch.nan
        next(iter(state["ema"].values()))[:] = torch.inf
        state["batchnorm"]["kept"][layer][0][:] = torch.nan

    poison(folder, change)
    repaired = repair(folder)
    assert {change.how for change in repaired.changes} == {"restored"}
    assert repaired.out is not None
    state, theirs = read_checkpoint(repaired.out)[0], read_checkpoint(earlier)[0]
    assert state["network"][f"{layer}.running_var"][0] == theirs["network"][f"{layer}.running_var"][0]
    assert torch.equal(state["optimizer"]["state"][0]["exp_avg"], theirs["optimizer"]["state"][0]["exp_avg"])
    assert torch.equal(state["batchnorm"]["kept"][layer][0], state["network"][f"{layer}.running_mean"])

    poison(folder, lambda state: next(iter(state["network"].values())).view(-1)[:1].fill_(torch.nan))
    refused = repair(folder)
    assert (refused.out, refused.exit_code) == (None, 1)
    assert str(earlier) in refused.advice[0]


def test_damage_is_told_from_sickness(run: RunDir) -> None:
    """Its manifest vouches for the state: the record with the flipped bit is named, and taken from a sibling."""
    folder = newest(run)
    state, _ = read_checkpoint(folder)
    name, weight = next((name, t) for name, t in state["network"].items() if t.numel() > 100)
    whole = bytearray((folder / "state.pt").read_bytes())
    whole[whole.index(weight.numpy().tobytes()) + 40] ^= 1
    (folder / "state.pt").write_bytes(whole)
    assert {(finding.code, finding.name) for finding in diagnose(folder).sick} == {
        ("checksum", ""),
        ("damaged", f"network.{name}"),
    }
    assert repair(folder).out is None
    earlier = sorted(run.checkpoints.glob("step_*"))[-2]
    repaired = repair(folder, against=earlier)
    assert [(change.name, change.how) for change in repaired.changes] == [(f"network.{name}", "restored")]


def test_a_manifest_that_cannot_be_trusted(run: RunDir) -> None:
    folder = newest(run)
    manifest = json.loads((folder / "manifest.json").read_text())
    (folder / "manifest.json").write_text(json.dumps(manifest | {"step": 7}))
    assert [finding.code for finding in diagnose(folder).sick] == ["bad_manifest"]
    assert repair(folder).out is None
    (folder / "state.pt").unlink()
    assert diagnose(folder).exit_code == 3


def test_without_the_model_it_says_so(run: RunDir) -> None:
    """A run folder whose model is not here: the next rung, and why it was not this one."""
    folder = newest(run)
    for other in run.checkpoints.glob("step_*"):
        if other != folder:
            shutil.rmtree(other)
    layer = statistics(read_checkpoint(folder)[0])[0]
    poison(folder, lambda state: state["network"][f"{layer}.running_mean"].fill_(torch.nan))
    text = run.config_yaml.read_text().replace("model: swae3d", "model: gone_away")
    run.config_yaml.write_text(text)
    repaired = repair(folder, reestimate=reestimate)
    assert [change.how for change in repaired.changes] == ["reset"]
    assert "gone_away" in repaired.advice[0]


def test_a_capsule_is_evidence(train_run: MakeRun) -> None:
    run = train_run("swae3d", "before", settings=["data.faults=[{step: 1, kind: inf_pixel}]"])
    (capsule, *_) = sorted(run.capsules.glob("step_*"))
    diagnosis = diagnose(capsule)
    assert diagnosis.kind == "hpcstab capsule"
    assert not [finding for finding in diagnosis.sick if finding.part == "other"]
    assert repair(capsule).out is None
