"""A run folder is executed: crashes are recorded, a full disk is one line, kill -9 loses no file."""

from __future__ import annotations

import json
import random
import re
import resource
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import yaml

from hpcstab import identity
from hpcstab.config import load_experiment, resolve
from hpcstab.errors import RunError
from hpcstab.execute import execute, read_config
from hpcstab.identity import code_identity
from hpcstab.metrics import read_events, read_rows
from hpcstab.rundir import RunDir, begin_attempt, find_runs, read_json
from tests.conftest import REPOSITORY, MakeRun

TRAIN = [sys.executable, "-m", "hpcstab", "train", "swae3d@cured", "--scale", "tiny"]


def test_config_is_read_back_from_the_folder_alone(make_run: MakeRun) -> None:
    run = make_run(variant="after", settings=["optimizer.eps=1e-7"])
    model, config = read_config(run)
    assert model == "swae3d"
    assert (config.optimizer.eps, config.optimizer.lr) == (1e-7, 1e-4)
    assert yaml.safe_load(run.config_yaml.read_text())["trainer"]["evaluate_every"] == {"steps": 3}


def test_a_crash_is_recorded_with_its_error(
    make_run: MakeRun, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A task of a user's own that raises in the middle: state failed, the traceback in the log, no exception."""
    (tmp_path / "broken.py").write_text(
        "from hpcstab.models.swae3d.task import Task as Base\n\n\n"
        "class Task(Base):\n"
        "    def loss_terms(self, network, batch, context):\n"
        "        if context.step == 2:\n"
        "            raise ZeroDivisionError('a bug of mine')\n"
        "        return super().loss_terms(network, batch, context)\n"
    )
    run = make_run()
    values = yaml.safe_load(run.config_yaml.read_text())
    run.config_yaml.write_text(yaml.safe_dump({**values, "model": f"{tmp_path}/broken.py:Task"}))
    result = execute(run, begin_attempt(run, {}))
    assert (result.state, result.reason) == ("failed", "ZeroDivisionError: a bug of mine")
    status = read_json(run.status_json)
    assert status is not None
    assert (status["state"], status["error"]) == ("failed", "ZeroDivisionError: a bug of mine")
    assert len(read_rows(run.metrics_csv)) == 2
    assert "a bug of mine" in capsys.readouterr().err


def test_a_run_that_needs_tensorboard_says_so(make_run: MakeRun, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "torch.utils.tensorboard", None)
    run = make_run(settings=["trainer.tensorboard=required"])
    with pytest.raises(RunError, match="'required' and tensorboard is not installed"):
        execute(run, begin_attempt(run, {}))
    optional = make_run(settings=["trainer.tensorboard=optional", "trainer.max_steps=1"])
    assert execute(optional, begin_attempt(optional, {})).state == "completed"
    assert next(iter(read_events(optional.events_jsonl)))["kind"] == "tensorboard_absent"


def _limit_file_size() -> None:
    # run.json holds the diff of a tree that is being worked on; it must still fit
    limit = 12_000 + len(json.dumps(code_identity()))
    resource.setrlimit(resource.RLIMIT_FSIZE, (limit, limit))


def test_a_disk_that_fills_up_ends_with_one_line(tmp_path: Path) -> None:
    """The file size limit stands for a full disk: writes fail in the middle of the training."""
    done = subprocess.run(
        [*TRAIN, "--root", str(tmp_path / "runs"), "--set", "trainer.max_steps=1000000"],
        capture_output=True,
        text=True,
        cwd=REPOSITORY,
        preexec_fn=_limit_file_size,
        timeout=200,
    )
    assert done.returncode == 3, done.stderr
    message = done.stderr.strip().splitlines()[-1]
    assert message.startswith("hpcstab: ")
    assert re.search(
        r"(\.csv|step_\d+): cannot be written: File too large; free space or choose another --root$", message
    )
    assert "Traceback" not in done.stderr
    (run,) = find_runs(tmp_path / "runs")
    assert_whole(run)
    status = read_json(run.status_json)
    assert status is not None
    assert status["state"] == "failed"
    assert not list(run.path.rglob("*.aside"))


def assert_whole(run: RunDir) -> None:
    """Every file of the run can be read; rows are complete, and those of steps that were decided without a gap."""
    for path in run.path.rglob("*.json"):
        json.loads(path.read_text())
    rows = read_rows(run.metrics_csv)
    steps = [int(row["step"]) for row in rows if row["outcome"] in ("applied", "skipped")]
    assert steps == list(range(len(steps)))
    read_events(run.events_jsonl)
    status = read_json(run.status_json)
    if status is not None:
        assert status["step"] <= len(rows)  # a row is on disk before the status speaks of it


@pytest.mark.parametrize("seed", range(3))
def test_kill_9_at_any_instant_loses_no_file(tmp_path: Path, seed: int) -> None:
    root = tmp_path / "runs"
    command = [*TRAIN, "--root", str(root), "--set", "trainer.max_steps=1000000"]
    process = subprocess.Popen(command, cwd=REPOSITORY, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not list(root.glob("*/*/*/metrics.csv")) and time.monotonic() < deadline:
        time.sleep(0.01)
    time.sleep(random.Random(seed).uniform(0.0, 1.0))
    process.send_signal(signal.SIGKILL)
    process.wait()
    (run,) = find_runs(root)
    assert_whole(run)
    assert (run.attempt_json(1)).is_file()


def test_a_run_that_cannot_be_written_leaves_no_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(path: Path, value: object) -> None:
        raise RunError(f"{path}: cannot be written: No space left on device")

    monkeypatch.setattr(identity, "write_json", full)
    experiment = load_experiment("swae3d")
    with pytest.raises(RunError, match="No space left"):
        identity.create_run(tmp_path, experiment, resolve(experiment, "before", "tiny"), 0)
    assert not list(tmp_path.glob("*/*/*"))
