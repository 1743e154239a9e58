"""The verb rerun as a user meets it: it takes the launch path of submit, and what is refused creates nothing."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.checkpoint import read_checkpoint
from hpcstab.config import load_experiment, resolve
from hpcstab.identity import create_run
from hpcstab.launch.queue import run_states
from hpcstab.rundir import RunDir, begin_attempt, find_runs
from hpcstab.state.ledger import find_job
from hpcstab.state.process import Process
from tests.cli import test_jobs as jobs
from tests.cli.test_jobs import Command
from tests.launch.conftest import wait_for_end
from tests.rerun import conftest as reruns

fake_training = jobs.fake_training
root = jobs.root
command = jobs.command
trained = reruns.trained
parent = reruns.parent
SetPlan = Callable[[str], None]


def files(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


def test_it_waits_and_reports_with_its_parent(command: Command, root: Path, parent: RunDir) -> None:
    code, out, _ = command("rerun", "after", "--from", "4", "--with", "hardened")
    assert code == 0
    lines = out.splitlines()
    assert lines[0] == f"goes on from step 4 of {parent.run_id} (step_00000004)"
    assert lines[1:4] == [
        "changed: stability.gate open -> closed",
        "changed: stability.guards null -> default",
        "starts anew: the guards (they were off)",
    ]
    assert "after+hardened s0  completed 6/6  loss 0.5" in lines
    labels = [line.split("\t")[0] for line in lines if line.startswith("after")]
    assert {"after", "after+hardened (rerun from step 4)"} <= set(labels), "its parent is in the report"
    (child,) = [run for run in find_runs(root) if run.identity()["parent"]]
    ledger, _ = find_job(root, child.run_id)
    assert ledger is not None and ledger.request[:2] == ["rerun", "after"]
    assert read_checkpoint(child.checkpoint(4))[1]["begins_run"]
    assert not list(root.glob(".submissions/*/staged"))


def test_detached_then_status_logs_and_cancel(
    command: Command, fake_training: SetPlan, root: Path, parent: RunDir
) -> None:
    fake_training("0=wait")
    code, out, err = command("rerun", parent.run_id, "--from", "4", "--detach", "--json")
    assert code == 0
    answer = json.loads(out)
    assert err.splitlines()[0] == f"goes on from step 4 of {parent.run_id} (step_00000004)"
    (run_id,) = answer["runs"]
    code, out, _ = command("cancel", answer["campaign"])
    assert (code == 0 and "asked to stop" in out) or "taken from the queue" in out
    (state,) = wait_for_end(root, answer["campaign"])
    assert (state.state, state.run_id) == ("cancelled", run_id)


def test_a_dry_run_shows_everything_and_creates_nothing(command: Command, root: Path, parent: RunDir) -> None:
    before = files(root)
    code, out, _ = command("rerun", "after", "--from", "2", "--set", "trainer.max_steps=20", "--dry-run")
    assert code == 0
    assert "changed: trainer.max_steps 6 -> 20" in out.splitlines()
    assert "1 run on cluster 'local'" in out
    assert files(root) == before
    code, out, _ = command("rerun", "after", "--from", "2", "--cluster", "delta", "--dry-run", "--json")
    assert code == 0 and "#SBATCH --gres=gpu:1" in json.loads(out)["script"]
    assert files(root) == before


def test_a_parent_that_still_runs_is_allowed_and_said(command: Command, root: Path, parent: RunDir) -> None:
    status = json.loads(parent.status_json.read_text())
    parent.status_json.write_text(json.dumps({**status, "state": "running", "step": 4}))
    begin_attempt(parent, {"node": "here", "process": Process.current().model_dump()})
    assert run_states(root)[0].state == "running"
    code, out, err = command("rerun", "after", "--from", "4", "--dry-run")
    assert code == 0
    assert err == f"hpcstab: {parent.run_id} is running; what it does after its step 4 is not in the rerun\n"
    assert out.startswith(f"goes on from step 4 of {parent.run_id}")


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["nothing"], 2, "no run matches 'nothing'"),
        (["after", "--from", "3"], 2, "has no such checkpoint; there are: 6, 4, 2"),
        (["after", "--from", "weights.pt"], 2, "has no such checkpoint and no file"),
        (["after", "--from", "notes.txt"], 3, "notes.txt is unreadable"),
        (["after"], 2, "at step 6 of 6 nothing is left to train"),
        (["after", "--from", "4", "--with", "clpi"], 2, "did you mean 'clip'?"),
        (["after", "--from", "4", "--with", "clip"], 2, "the parent has this fix already"),
        (["after", "--from", "4", "--with", "gdn_bounded"], 2, "--with gdn_bounded: gives another network"),
        (["after", "--from", "4", "--set", "optimizer.lrr=1"], 2, "unknown key 'optimizer.lrr'"),
        (["after", "--from", "4", "--cluster", "dleta"], 2, "did you mean 'delta'?"),
    ],
)
def test_wrong_requests_are_one_line_and_create_nothing(
    command: Command, root: Path, parent: RunDir, arguments: list[str], code: int, message: str
) -> None:
    Path("notes.txt").write_text("no checkpoint")
    before = files(root)
    got, out, err = command("rerun", *arguments)
    assert (got, out) == (code, "")
    assert message in err and err.count("\n") == 1
    assert files(root) == before


def test_a_root_that_cannot_be_written_leaves_nothing(
    command: Command, parent: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("")
    code, _, err = command("rerun", str(parent.path), "--from", "4", "--root", str(tmp_path / "file"))
    assert code == 2 and "cannot be written" in err
    assert (tmp_path / "file").read_text() == ""


def test_a_run_without_a_checkpoint(command: Command, root: Path) -> None:
    experiment = load_experiment("swae3d")
    create_run(root, experiment, resolve(experiment, "before", "tiny"), 0)
    code, _, err = command("rerun", "before")
    assert code == 3 and "has no checkpoint; --from FILE begins with weights, `hpcstab submit` from step 0" in err
