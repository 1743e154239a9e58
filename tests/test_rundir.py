"""Run folders: names, lookup, whole small files, attempts."""

from __future__ import annotations

import json
import multiprocessing
import os
import signal
import time
from pathlib import Path

import pytest

from hpcstab import rundir
from hpcstab.errors import RunError
from hpcstab.rundir import (
    RunDir,
    begin_attempt,
    create_run_dir,
    end_attempt,
    find_run,
    find_runs,
    read_attempts,
    read_json,
    remove_asides,
    write_json,
)
from tests.conftest import MakeRun


def new_run(root: Path, variant: str = "before", seed: int = 0, signature: str = "ab" * 32) -> RunDir:
    run = create_run_dir(root, "swae3d", variant, seed, signature)
    write_json(run.run_json, {"run_id": run.run_id})
    return run


def test_a_folder_is_never_reused(tmp_path: Path) -> None:
    runs = [new_run(tmp_path) for _ in range(4)]
    assert len({run.path for run in runs}) == 4
    assert {run.path for run in find_runs(tmp_path)} == {run.path for run in runs}


def test_run_is_found_by_path_id_and_unique_part(tmp_path: Path) -> None:
    first = new_run(tmp_path, seed=1)
    second = new_run(tmp_path, "after", seed=2)
    assert find_run(str(first.path), tmp_path) == first
    assert find_run(first.run_id, tmp_path) == first
    assert find_run("after", tmp_path) == second
    assert find_run("_s1_", tmp_path) == first
    with pytest.raises(RunError, match="matches 2 runs") as caught:
        find_run("swae3d", tmp_path)
    assert caught.value.exit_code == 2
    with pytest.raises(RunError, match="no run matches 'nothing'"):
        find_run("nothing", tmp_path)


def test_unwritable_root_is_one_clear_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match=r"run root .* cannot be written: .*choose another --root") as caught:
        new_run(tmp_path / "file" / "runs")
    assert caught.value.exit_code == 2


def test_json_refuses_non_finite_and_leaves_nothing(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="not JSON compliant"):
        write_json(tmp_path / "x.json", {"loss": float("nan")})
    assert list(tmp_path.iterdir()) == []


def test_failed_write_leaves_the_old_file_and_no_aside(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "status.json"
    write_json(path, {"step": 1})

    def full(self: Path, content: bytes) -> int:
        with self.open("wb") as file:
            file.write(content[:3])
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(rundir.Path, "write_bytes", full)
    with pytest.raises(RunError, match="No space left on device"):
        write_json(path, {"step": 2})
    assert read_json(path) == {"step": 1}
    assert [entry.name for entry in tmp_path.iterdir()] == ["status.json"]


def test_corrupt_json_is_named(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{")
    with pytest.raises(RunError, match=r"a\.json"):
        read_json(tmp_path / "a.json")
    (tmp_path / "b.json").write_text("[]")
    with pytest.raises(RunError, match="not a JSON mapping"):
        read_json(tmp_path / "b.json")
    assert read_json(tmp_path / "absent.json") is None


def test_attempts_are_numbered_and_end_once(tmp_path: Path) -> None:
    run = new_run(tmp_path)
    assert begin_attempt(run, {"node": "n1"}) == 1
    end_attempt(run, 1, "SIGTERM", 40)
    assert begin_attempt(run, {"node": "n2"}) == 2
    first, second = read_attempts(run)
    assert (first["reason"], first["steps_gained"], first["node"]) == ("SIGTERM", 40, "n1")
    assert second["end"] is None


def _write_for_ever(path: str) -> None:
    number = 0
    while True:
        number += 1
        write_json(Path(path), {"number": number, "padding": "x" * 20_000})


def test_kill_at_any_instant_never_loses_the_file(tmp_path: Path) -> None:
    """A reader sees the old file or the new one, whole; what a kill leaves aside goes at the next start."""
    run = new_run(tmp_path)
    write_json(run.status_json, {"number": 0})
    for delay_s in (0.01, 0.02, 0.035, 0.05):
        process = multiprocessing.get_context("fork").Process(target=_write_for_ever, args=(str(run.status_json),))
        process.start()
        time.sleep(delay_s)
        assert process.pid is not None
        os.kill(process.pid, signal.SIGKILL)
        process.join()
        assert json.loads(run.status_json.read_text())["number"] >= 0
    remove_asides(run)
    assert sorted(path.name for path in run.path.iterdir()) == ["attempts", "logs", "run.json", "status.json"]


def test_identity_says_what_the_run_is(make_run: MakeRun) -> None:
    run = make_run(variant="after", seed=3, settings=["optimizer.eps=1e-7"])
    identity = run.identity()
    assert identity["run_id"] == run.run_id
    assert (identity["variant"], identity["seed"], identity["scale"]) == ("after", 3, "tiny")
    assert identity["label"] == "after{optimizer.eps=1e-07}"
    assert [fix["name"] for fix in identity["fixes"]][:2] == ["batchnorm", "lower_lr"]
    assert all(fix["why"] and fix["kind"] for fix in identity["fixes"])
    assert len(identity["code_digest"]) == 64
    assert identity["packages"]["torch"]
    assert run.path.name.endswith(f"_s3_{identity['signature'][:8]}")
