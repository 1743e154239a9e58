"""A checkpoint that replaces one of its own name: whenever its writer dies, one of both is found and whole."""

from __future__ import annotations

import multiprocessing
import os
import resource
import signal
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from hpcstab.checkpoint import CheckpointStore, read_checkpoint, write_checkpoint
from hpcstab.errors import CheckpointError
from hpcstab.rundir import RunDir, create_run_dir

STEP = 7


def save_and_die(run: RunDir, num_changes: int) -> None:
    """Replace the checkpoint, but for a SIGKILL before the change of the disk behind the first ``num_changes``."""
    left = iter(range(num_changes))

    def dying(call: Callable[..., None]) -> Callable[..., None]:
        def act(*args: Any, **kwargs: Any) -> None:
            if next(left, None) is None:
                os.kill(os.getpid(), signal.SIGKILL)
            call(*args, **kwargs)

        return act

    for name in ("rename", "rmdir", "unlink"):
        setattr(os, name, dying(getattr(os, name)))
    CheckpointStore(run).save(STEP, {"value": torch.tensor(2.0)}, {}, healthy=True)


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    """A run with a checkpoint of step 7 whose value is 1."""
    run = create_run_dir(tmp_path, "toy", "before", 0, "00" * 32)
    CheckpointStore(run).save(STEP, {"value": torch.tensor(1.0)}, {}, healthy=True)
    return run


def found(run: RunDir) -> float:
    CheckpointStore(run).clean_up()
    restored = CheckpointStore(run).newest("cpu")
    assert restored is not None and restored.refused == ()
    assert [path.name for path in run.checkpoints.iterdir() if path.is_dir()] == [restored.folder.name]
    return float(restored.state["value"])


def test_a_writer_that_is_killed_at_any_change_of_the_disk_costs_no_checkpoint(run: RunDir) -> None:
    """SIGKILL before the first, second, ... rename or removal, until the writer comes through."""
    values = []
    for changes in range(20):
        writer = multiprocessing.get_context("fork").Process(target=save_and_die, args=(run, changes))
        writer.start()
        writer.join()
        values.append(found(run))
        if writer.exitcode == 0:
            break
        assert writer.exitcode == -signal.SIGKILL
        write_checkpoint(run.checkpoint(STEP), {"value": torch.tensor(1.0)}, {"step": STEP, "healthy": True})
    assert values[:2] == [1.0, 1.0]  # before the first rename, and between the two
    assert values[-1] == 2.0
    assert len(values) >= 5


def test_a_writer_after_one_that_was_killed_keeps_the_old_until_the_new_is_whole(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = run.checkpoint(STEP)
    folder.rename(folder.with_name(f".{folder.name}.old"))  # as between the two renames

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(CheckpointError, match="No space left"):
        write_checkpoint(folder, {"value": torch.tensor(2.0)}, {"step": STEP, "healthy": True})
    assert float(read_checkpoint(folder)[0]["value"]) == 1.0


def test_a_disk_that_fills_up_at_any_byte_is_called_so(run: RunDir) -> None:
    """The limit of a file's size stands for it. torch closes its file after an error: where that failed too, it raised
    a RuntimeError in place of the disk's error, and the training died of what costs a training nothing."""
    folder, state = run.checkpoint(STEP), {"value": torch.tensor(2.0), "weight": torch.ones(3000)}
    write_checkpoint(folder, state, {"step": STEP, "healthy": True})
    num_bytes = (folder / "state.pt").stat().st_size
    _, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    for limit in range(0, num_bytes, 61):
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, hard))
        try:
            with pytest.raises(CheckpointError, match="cannot be written: File too large"):
                write_checkpoint(folder, {**state, "value": torch.tensor(3.0)}, {"step": STEP, "healthy": True})
        finally:
            resource.setrlimit(resource.RLIMIT_FSIZE, (hard, hard))
    assert found(run) == 2.0


def test_a_rename_that_fails_brings_the_old_one_back(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    rename = os.rename

    def second_fails(source: Path, target: Path) -> None:
        if str(source).endswith(".aside"):
            raise OSError(5, "Input/output error")
        rename(source, target)

    monkeypatch.setattr(os, "rename", second_fails)
    with pytest.raises(CheckpointError, match="Input/output error"):
        write_checkpoint(run.checkpoint(STEP), {"value": torch.tensor(2.0)}, {"step": STEP, "healthy": True})
    monkeypatch.undo()
    assert found(run) == 1.0
