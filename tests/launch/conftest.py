"""Real processes, with a trainer that does what a test asks of it (see fake_training/sitecustomize.py)."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from hpcstab.campaign import plan
from hpcstab.launch.cancel import cancel_campaign
from hpcstab.launch.clusters import Cluster, load_cluster
from hpcstab.launch.queue import RunState, run_states
from hpcstab.launch.submit import submit
from hpcstab.state.ledger import Ledger, ledger_path
from tests.conftest import REPOSITORY

FAKE_TRAINING = Path(__file__).with_name("fake_training")
Submit = Callable[..., Ledger]


@pytest.fixture
def fake_training(monkeypatch: pytest.MonkeyPatch) -> Callable[[str], None]:
    """``fake_training("0=complete,1=crash")``: what the trainer does in the processes started after it, by seed."""
    monkeypatch.syspath_prepend(str(FAKE_TRAINING))  # jobs import what their submitter imports
    before = [path for path in (os.environ.get("PYTHONPATH"),) if path]
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(FAKE_TRAINING), str(REPOSITORY), *before]))

    def set_plan(plan: str) -> None:
        monkeypatch.setenv("HPCSTAB_TEST_TRAINING", plan)

    set_plan("")
    return set_plan


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def submit_fake(fake_training: Callable[[str], None], root: Path) -> Iterator[Submit]:
    """Submit ``before`` at scale tiny over some seeds; what still runs when the test ends is killed."""
    submitted: list[Ledger] = []

    def submit_seeds(training: str, seeds: list[int], parallel_runs: int = 4, **changes: object) -> Ledger:
        fake_training(training)
        planned = plan(["swae3d"], ["before"], seeds, "tiny")
        ledger = submit(planned, "swae3d", local(max_parallel=parallel_runs, **changes), root)
        submitted.append(ledger)
        return ledger

    yield submit_seeds
    for ledger in submitted:
        if ledger_path(root, ledger.campaign).exists():
            kill_all(root, ledger.campaign)


def local(**changes: object) -> Cluster:
    """The shipped cluster ``local`` with some settings changed."""
    return load_cluster("local").model_copy(update=changes)


def wait_until(condition: Callable[[], object], what: str, patience_s: float = 60.0) -> None:
    deadline = time.monotonic() + patience_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {patience_s:.0f} s for: {what}"
        time.sleep(0.02)


def wait_for_end(root: Path, campaign: str) -> list[RunState]:
    """The states of a campaign once all its runs have ended."""
    wait_until(lambda: not any(state.is_open for state in run_states(root, campaign)), f"the end of {campaign}")
    return run_states(root, campaign)


def states(root: Path, campaign: str) -> list[str]:
    return [state.state for state in run_states(root, campaign)]


def kill_all(root: Path, campaign: str) -> None:
    import signal

    from hpcstab.state.ledger import read_ledger

    cancel_campaign(ledger_path(root, campaign))
    ledger = read_ledger(ledger_path(root, campaign))
    for process in [job.process for job in ledger.jobs] + [ledger.owner]:
        if process is not None and process.pid != os.getpid():
            process.send_signal(signal.SIGKILL)
