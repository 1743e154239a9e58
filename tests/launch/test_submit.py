"""Campaigns of real processes, from the plan to how each run ended; and what stays when one cannot start."""

from __future__ import annotations

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from itertools import pairwise
from pathlib import Path

import pytest

from hpcstab.campaign import plan
from hpcstab.errors import HpcstabError, LaunchError, RunError
from hpcstab.launch.clusters import load_cluster
from hpcstab.launch.queue import run_states
from hpcstab.launch.submit import submit
from hpcstab.rundir import RunDir, find_runs, read_attempts
from hpcstab.state.ledger import ledger_path, read_ledger, submission_folder
from tests.launch.conftest import Submit, local, states, wait_for_end, wait_until


def everything_under(root: Path) -> list[str]:
    return sorted(str(path.relative_to(root)) for path in root.rglob("*")) if root.exists() else []


def test_how_each_run_ended(submit_fake: Submit, root: Path) -> None:
    training = "0=complete,1=diverge,2=fail,3=refuse,4=bug,5=crash"
    ledger = submit_fake(training, [0, 1, 2, 3, 4, 5])
    ended = wait_for_end(root, ledger.campaign)
    assert [state.state for state in ended] == ["completed", "diverged", "failed", "failed", "failed", "lost"]
    assert [state.is_result for state in ended] == [True, True, False, False, False, False]
    assert ended[2].detail == "ValueError: the data are bad"
    log = RunDir(root / ended[5].run_id).log(1)
    wait_until(lambda: log.exists() and "last words" in log.read_text(), "what the killed process had printed")
    for state in ended:
        run = RunDir(root / state.run_id)
        assert run.identity()["campaign"] == ledger.campaign
        (attempt,) = read_attempts(run)
        assert attempt["job_id"] == read_ledger(ledger_path(root, ledger.campaign)).jobs[state.seed or 0].job_id
        assert (attempt["end"] is None) == (state.state == "lost")


def test_no_more_at_a_time_than_asked_for_and_in_order(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("", [0, 1, 2], parallel_runs=1)
    wait_for_end(root, ledger.campaign)
    attempts = [read_attempts(RunDir(root / job.run_id))[0] for job in ledger.jobs]
    for earlier, later in pairwise(attempts):
        assert earlier["end"] <= later["start"]


def test_a_second_campaign_waits_for_the_first(submit_fake: Submit, root: Path) -> None:
    first = submit_fake("", [0, 1], parallel_runs=1)
    second = submit_fake("", [2], parallel_runs=1)
    wait_for_end(root, second.campaign)
    assert states(root, first.campaign) == ["completed"] * 2


def test_only_one_job_waits_ahead(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake(",".join(f"{seed}=wait" for seed in range(5)), list(range(5)), parallel_runs=1)
    path = ledger_path(root, ledger.campaign)
    wait_until(lambda: sum(job.process is not None for job in read_ledger(path).jobs) == 2, "the job ahead")
    wait_until(lambda: states(root, ledger.campaign)[0] == "running", "the first run")
    assert states(root, ledger.campaign) == ["running"] + ["queued"] * 4
    assert [job.process is not None for job in read_ledger(path).jobs] == [True, True, False, False, False]


def test_what_the_job_may_use_is_set_before_torch_is_loaded(
    submit_fake: Submit, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,7")
    ledger = submit_fake("0=environment,1=environment,2=environment", [0, 1, 2], threads_per_run=3, parallel_runs=3)
    wait_for_end(root, ledger.campaign)
    devices = []
    for job in ledger.jobs:
        log = RunDir(root / job.run_id).log(1).read_text()
        assert "OMP_NUM_THREADS=3\nMKL_NUM_THREADS=3\n" in log
        assert "torch loaded: False" in log
        (attempt,) = read_attempts(RunDir(root / job.run_id))
        assert f"CUDA_VISIBLE_DEVICES={attempt['devices'][0]}\n" in log
        devices.append((attempt["slot"], attempt["devices"]))
    assert all(shown == [["4", "7", "4"][slot]] for slot, shown in devices), "slots take turns on the GPUs"


@pytest.mark.skipif(any(Path("/dev").glob("nvidia[0-9]*")), reason="for a machine without GPUs")
def test_where_there_is_no_gpu_nothing_is_hidden(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=environment", [0])
    wait_for_end(root, ledger.campaign)
    assert "CUDA_VISIBLE_DEVICES=None" in RunDir(root / ledger.jobs[0].run_id).log(1).read_text()


def test_the_time_limit_stops_a_run(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=wait", [0], time_limit_min=0.02)
    assert [state.state for state in wait_for_end(root, ledger.campaign)] == ["timeout"]


def test_a_step_that_hangs_beyond_the_limit_is_ended_with_a_traceback() -> None:
    code = """
        import time
        from hpcstab.launch import job_body
        from hpcstab.launch.signals import StopSignals
        job_body._GRACE_S = 0.2
        with StopSignals() as signals, job_body._limited_to(0.1, signals):
            time.sleep(60)
    """
    done = subprocess.run([sys.executable, "-c", textwrap.dedent(code)], capture_output=True, text=True, timeout=30)
    assert done.returncode == 1
    assert "Timeout" in done.stderr
    assert "line 7" in done.stderr


def test_jobs_survive_their_submitter(fake_training: Callable[[str], None], root: Path) -> None:
    fake_training("0=wait")
    code = f"""
        import os, signal
        from pathlib import Path
        from hpcstab.campaign import plan
        from hpcstab.launch.submit import submit
        from hpcstab.launch.clusters import load_cluster
        ledger = submit(plan(["swae3d"], ["before"], [0], "tiny"), "swae3d", load_cluster("local"), Path({str(root)!r}))
        print(ledger.campaign, flush=True)
        os.killpg(0, signal.SIGKILL)
    """
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        timeout=60,
        start_new_session=True,
    )
    campaign = done.stdout.strip()
    wait_until(lambda: states(root, campaign) == ["running"], "the run without its submitter")
    (job,) = read_ledger(ledger_path(root, campaign)).jobs
    assert job.process is not None
    job.process.send_signal(signal.SIGTERM)
    assert [state.state for state in wait_for_end(root, campaign)] == ["stopped"]
    assert run_states(root, campaign)[0].detail == "SIGTERM"


def test_submissions_in_the_same_second_share_nothing(fake_training: Callable[[str], None], root: Path) -> None:
    planned = plan(["swae3d"], ["before"], [0], "tiny")
    with ThreadPoolExecutor(2) as pool:
        ledgers = list(pool.map(lambda _: submit(planned, "swae3d", local(), root), range(2)))
    assert len({ledger.campaign for ledger in ledgers}) == 2
    assert len({ledger.jobs[0].run_id for ledger in ledgers}) == 2
    for ledger in ledgers:
        assert [state.state for state in wait_for_end(root, ledger.campaign)] == ["completed"]


def test_a_folder_called_like_a_package_is_not_in_the_way(
    submit_fake: Submit, root: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("hpcstab", "submitit", "yaml"):
        (tmp_path / "here" / name).mkdir(parents=True)
        (tmp_path / "here" / name / "__init__.py").write_text("raise SystemExit('the wrong package')")
    monkeypatch.chdir(tmp_path / "here")
    ledger = submit_fake("", [0])
    assert [state.state for state in wait_for_end(root, ledger.campaign)] == ["completed"]


@pytest.mark.parametrize("place", ["file/runs", "/proc/runs", "%j"])
def test_a_root_that_cannot_be_used_stays_as_it_was(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    before = everything_under(tmp_path)
    with pytest.raises(HpcstabError) as caught:
        submit(plan(["swae3d"], ["before"], [0], "tiny"), "swae3d", load_cluster("local"), tmp_path / place)
    assert caught.value.exit_code == 2
    assert "choose another --root" in str(caught.value)
    assert everything_under(tmp_path) == before


@pytest.mark.parametrize("max_file_bytes", [100, 2_000])
def test_nothing_stays_when_the_disk_is_full(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, max_file_bytes: int
) -> None:
    """A limit on file sizes stands in for the disk: the first or a later file of a run does not fit."""
    planned = plan(["swae3d"], ["before", "after"], [0, 1], "tiny")
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (max_file_bytes, before[1]))
    try:
        with pytest.raises(RunError, match="cannot be written: File too large"):
            submit(planned, "swae3d", local(), tmp_path / "new" / "runs")
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)
    assert everything_under(tmp_path) == []


def test_nothing_stays_when_the_starter_cannot_start(
    tmp_path: Path, root: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "submitit.py").write_text("raise ImportError('no submitit on this day')")
    monkeypatch.syspath_prepend(str(tmp_path))
    with pytest.raises(LaunchError, match="could not be started: ImportError: no submitit on this day"):
        submit(plan(["swae3d"], ["before"], [0], "tiny"), "swae3d", local(), root)
    assert everything_under(root) == []


def test_a_starter_that_dies_leaves_its_queue_lost_and_says_so(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=wait,1=wait,2=wait", [0, 1, 2], parallel_runs=1)
    path = ledger_path(root, ledger.campaign)
    wait_until(lambda: read_ledger(path).jobs[1].process is not None, "the job ahead")
    assert ledger.owner is not None
    assert ledger.owner.pid != os.getpid()
    ledger.owner.send_signal(signal.SIGKILL)
    wait_until(lambda: states(root, ledger.campaign)[2] == "lost", "the job that nobody starts any more")
    assert "was not started" in str(run_states(root, ledger.campaign)[2].detail)
    assert states(root, ledger.campaign)[1] == "queued"


def test_ids_are_relative_and_pickles_hold_paths_only(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("", [0])
    wait_for_end(root, ledger.campaign)
    (pickle,) = submission_folder(ledger_path(root, ledger.campaign)).glob("*_submitted.pkl")
    assert pickle.stat().st_size < 1_000
    moved = root.rename(root.with_name("moved"))
    assert [state.state for state in run_states(moved, ledger.campaign)] == ["completed"]
    assert [run.run_id for run in find_runs(moved)] == [ledger.jobs[0].run_id]
