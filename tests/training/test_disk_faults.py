"""Real disks that are full or read-only (a small tmpfs): the training goes on or stops with one line, and the last
healthy checkpoint stays."""

from __future__ import annotations

import contextlib
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcstab.checkpoint import CheckpointStore, background, read_checkpoint
from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.errors import CheckpointError, RunError
from hpcstab.execute import execute
from hpcstab.identity import create_run
from hpcstab.metrics import read_events, read_history
from hpcstab.rundir import RunDir, begin_attempt
from hpcstab.training import saving
from tests.training.test_gate import same

SIZE_BYTES = 8 << 20
NUM_STEPS = 12
SETTINGS = [
    f"trainer.max_steps={NUM_STEPS}",
    "trainer.checkpoint_every={steps: 2}",
    "trainer.evaluate_every={steps: 6}",
]


def mount(*words: str) -> None:
    subprocess.run(["mount", *words], check=True, capture_output=True, text=True)


@pytest.fixture
def small_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """A file system of 8 MiB of its own, unmounted afterwards."""
    monkeypatch.setattr(background, "RETRY_S", 0.01)
    monkeypatch.setattr(saving, "LAST_PATIENCE_S", 0.0)
    folder = tmp_path / "disk"
    folder.mkdir()
    try:
        mount("-t", "tmpfs", "-o", f"size={SIZE_BYTES}", "tmpfs", str(folder))
    except (OSError, subprocess.CalledProcessError) as error:
        pytest.skip(f"this process may not mount a tmpfs, which a full and a read-only disk are made of: {error}")
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


def swae3d(root: Path) -> RunDir:
    experiment = load_experiment("swae3d")
    return create_run(root, experiment, resolve(experiment, "cured", "tiny", parse_overrides(SETTINGS)), 0)


def train(run: RunDir, acts: dict[int, Callable[[], object]] | None = None) -> str:
    """One attempt; ``acts``: what happens at its first boundary before a step, once so many steps were recorded."""
    waiting = dict(acts or {})

    def look() -> None:
        num_steps = len(read_history(run.metrics_csv))
        for step in [step for step in waiting if step <= num_steps]:
            waiting.pop(step)()

    return execute(run, begin_attempt(run, {}), look).state


def fill(folder: Path, leave: int) -> None:
    """Take all space but so many bytes."""
    with (folder / "filler").open("ab", buffering=0) as file, contextlib.suppress(OSError):
        file.write(bytes(max(shutil.disk_usage(folder).free - leave, 0)))


def failures(run: RunDir) -> list[str]:
    return [event["data"]["reason"] for event in read_events(run.events_jsonl) if event["kind"] == "checkpoint_failed"]


def newest_step(run: RunDir) -> int:
    restored = CheckpointStore(run).newest("cpu")
    assert restored is not None and restored.refused == ()
    return int(restored.manifest["step"])


@pytest.fixture(scope="module")
def expected(tmp_path_factory: pytest.TempPathFactory) -> dict[str, object]:
    """The weights that a run on a sound disk comes to."""
    run = swae3d(tmp_path_factory.mktemp("sound"))
    assert train(run) == "completed"
    return dict(read_checkpoint(run.checkpoint(NUM_STEPS))[0]["network"])


def test_training_goes_on_over_a_disk_that_is_full_for_a_while(small_disk: Path, expected: dict[str, object]) -> None:
    """Rows still fit, checkpoints do not; then there is room again."""
    run = swae3d(small_disk)
    seen: list[int] = []
    acts = {
        5: lambda: fill(small_disk, leave=200_000),
        9: lambda: (seen.append(newest_step(run)), (small_disk / "filler").unlink()),
    }
    assert train(run, acts) == "completed"
    assert all("No space left on device" in reason for reason in failures(run))
    assert failures(run)
    assert seen[0] >= 4  # what was whole before the disk was full
    assert same(read_checkpoint(run.checkpoint(NUM_STEPS))[0]["network"], expected)
    assert not list(run.checkpoints.glob(".*"))


def test_a_disk_without_room_for_a_row_ends_it_with_one_line(small_disk: Path, expected: dict[str, object]) -> None:
    """Whoever writes first finds it; with room again a resume comes to the same weights."""
    run = swae3d(small_disk)
    with pytest.raises((RunError, CheckpointError), match="No space left on device; free space") as error:
        train(run, {5: lambda: fill(small_disk, leave=0)})
    assert "\n" not in str(error.value)
    assert newest_step(run) in (4, 6)
    (small_disk / "filler").unlink()
    assert train(run) == "completed"
    assert same(read_checkpoint(run.checkpoint(NUM_STEPS))[0]["network"], expected)


def test_checkpoints_that_became_read_only(small_disk: Path, expected: dict[str, object]) -> None:
    """Root is held back by no mode, but by a read-only mount: events, then one line; writable again, a resume."""
    run = swae3d(small_disk.parent / "runs")
    run.checkpoints.mkdir()
    mount("--bind", str(small_disk), str(run.checkpoints))
    try:
        with pytest.raises(CheckpointError, match=r"could not be saved; resume the run .*Read-only file system"):
            train(run, {5: lambda: mount("-o", "remount,ro,bind", str(run.checkpoints))})
        assert len(read_history(run.metrics_csv)) == NUM_STEPS
        assert failures(run)
        assert all("Read-only file system" in reason for reason in failures(run))
        assert newest_step(run) in (4, 6)
        mount("-o", "remount,rw,bind", str(run.checkpoints))
        assert train(run) == "completed"
        assert same(read_checkpoint(run.checkpoint(NUM_STEPS))[0]["network"], expected)
    finally:
        subprocess.run(["umount", "--lazy", str(run.checkpoints)], check=True)
