"""A real Slurm of our own, started once for these tests and stopped after them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcstab.errors import HpcstabError
from hpcstab.launch.queue import RunState, run_states
from tests.conftest import REPOSITORY

LAB = Path(os.environ.get("HPCSTAB_LAB_SCRIPT", REPOSITORY / "jobs/lab/lab.py"))
UP_S = 120


class Lab:
    """The verbs of jobs/lab, on a folder with a short name: Unix sockets lie in it."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def verb(self, *words: str) -> str:
        environment = {**os.environ, "HPCSTAB_LAB": str(self.folder)}
        done = subprocess.run(
            [sys.executable, str(LAB), *words], env=environment, capture_output=True, text=True, timeout=UP_S
        )
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout.strip()


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    if not LAB.exists() or os.geteuid() or shutil.which("slurmctld") is None:
        pytest.skip("needs the lab: jobs/lab, root, and Slurm's packages (`make slurm-up`)")
    folder = Path(tempfile.mkdtemp(prefix="lab-"))
    lab = Lab(folder)
    try:
        lab.verb("up")
        yield lab
    finally:
        if (folder / "lab.json").exists():
            lab.verb("down")
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def lab(running_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The lab, for this process and all that it starts; its queue is empty afterwards."""
    setting = running_lab.verb("env").removeprefix("export SLURM_CONF=").strip("'\"")
    monkeypatch.setenv("SLURM_CONF", setting)
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # what a test sees is what Slurm says now
    monkeypatch.setattr("hpcstab.launch.answers.MIN_AGE_S", 0.5)
    yield running_lab
    subprocess.run(["scancel", "--quiet", "-u", "root"], check=False, timeout=30)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


def wait_for(condition: Callable[[], object], what: str, patience_s: float) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for: {what}"
        time.sleep(0.3)


def wait_for_end(root: Path, campaign: str, patience_s: float) -> list[RunState]:
    """The states once all runs have ended."""
    wait_for(lambda: not any(state.is_open for state in run_states(root, campaign)), f"end of {campaign}", patience_s)
    return run_states(root, campaign)


def refusal(action: Callable[[], object]) -> tuple[int, str]:
    """Exit code and message of what must be refused."""
    with pytest.raises(HpcstabError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value.exit_code, str(caught.value)
