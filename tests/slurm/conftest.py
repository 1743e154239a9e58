"""A real Slurm of our own for each process that runs these tests, and the run that nothing happens to."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from hpcstab.errors import HpcstabError
from hpcstab.launch.clusters import load_cluster
from hpcstab.launch.submit import submit
from hpcstab.rundir import RunDir, find_runs, read_json
from tests.lab.running_lab import RunningLab as Lab
from tests.lab.running_lab import lab_for_tests
from tests.slurm.runs import planned_runs
from tests.slurm.waiting import wait_for, wait_for_end

__all__ = ["Lab", "refusal", "wait_for", "wait_for_end"]


@pytest.fixture(scope="session")
def running_lab() -> Iterator[Lab]:
    with lab_for_tests() as lab:
        lab.verb("up")
        yield lab


@pytest.fixture(scope="session")
def running_user_signal_lab() -> Iterator[Lab]:
    with lab_for_tests() as lab:
        lab.verb("up", "--user-signal", "--no-accounting")
        yield lab


@contextmanager
def _entered(lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """The lab, for this process and all that it starts; its queue is empty afterwards."""
    monkeypatch.setenv("SLURM_CONF", str(lab.slurm_conf))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    # what a test sees is what Slurm says now
    monkeypatch.setattr("hpcstab.launch.answers.MIN_AGE_S", 0.5)
    yield lab
    lab.cancel_all()


@pytest.fixture
def lab(running_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    with _entered(running_lab, monkeypatch) as lab:
        yield lab


@pytest.fixture
def user_signal_lab(running_user_signal_lab: Lab, monkeypatch: pytest.MonkeyPatch) -> Iterator[Lab]:
    """With preempt_send_user_signal, and without accounting."""
    with _entered(running_user_signal_lab, monkeypatch) as lab:
        yield lab


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture(scope="session")
def started_uninterrupted(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The root of a run that trains on this machine, without Slurm; one for all processes that run these tests."""
    folder = tmp_path_factory.getbasetemp()
    root = (folder.parent if "PYTEST_XDIST_WORKER" in os.environ else folder) / "uninterrupted"
    try:
        root.mkdir()
    except FileExistsError:
        return root  # another process was first
    cluster = load_cluster("local").model_copy(update={"threads_per_run": 1})
    submit(planned_runs(), "swae3d", cluster, root)
    return root


@pytest.fixture
def uninterrupted(started_uninterrupted: Path) -> Callable[[], RunDir]:
    """Waits for its end, so that it trains while tests wait for Slurm."""

    def completed() -> RunDir | None:
        runs = find_runs(started_uninterrupted)
        ended = runs and (read_json(runs[0].status_json) or {}).get("state") == "completed"
        return runs[0] if ended else None

    def wait() -> RunDir:
        wait_for(completed, "the end of the uninterrupted run", 300)
        run = completed()
        assert run is not None
        return run

    return wait


def refusal(action: Callable[[], object]) -> tuple[int, str]:
    """Exit code and message of what must be refused."""
    with pytest.raises(HpcstabError) as caught:
        action()
    assert "\n" not in str(caught.value)
    return caught.value.exit_code, str(caught.value)
