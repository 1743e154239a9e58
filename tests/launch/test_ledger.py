"""The ledger: nobody's change is lost, nobody's id is used twice, and a damaged one is said to be damaged."""

from __future__ import annotations

import json
import multiprocessing
import re
from collections.abc import Callable
from pathlib import Path

import pytest

from hpcstab.errors import HpcstabError, LaunchError, RunError
from hpcstab.launch.ledger import claim_campaign, updating, write_ledger
from hpcstab.state.ledger import (
    Job,
    Ledger,
    Resources,
    find_job,
    is_campaign_id,
    ledger_path,
    read_ledger,
    read_ledgers,
)
from hpcstab.state.process import Process


def make_ledger(root: Path, num_jobs: int = 3) -> Path:
    campaign = claim_campaign(root, "swae3d")
    resources = Resources(parallel_runs=1, threads_per_run=1, gpus_per_run=0, devices=None, time_limit_s=60)
    jobs = [Job(index=index, run_id=f"swae3d/before/run{index}") for index in range(num_jobs)]
    ledger = Ledger(
        campaign=campaign,
        cluster="local",
        executor="local",
        created=1.0,
        request=["submit", "swae3d"],
        resources=resources,
        owner=Process.current(),
        jobs=jobs,
    )
    write_ledger(ledger_path(root, campaign), ledger)
    return ledger_path(root, campaign)


def test_written_and_read_back(root: Path) -> None:
    path = make_ledger(root)
    ledger = read_ledger(path)
    assert ledger.owner == Process.current()
    assert [job.run_id for job in ledger.jobs] == [f"swae3d/before/run{index}" for index in range(3)]
    found, job = find_job(root, "swae3d/before/run2")
    assert found is not None
    assert job is not None
    assert (found.campaign, job.index) == (ledger.campaign, 2)


def test_an_id_is_never_used_twice(root: Path) -> None:
    ids = [claim_campaign(root, "swae3d") for _ in range(4)]
    assert len(set(ids)) == 4
    assert all(is_campaign_id(campaign) for campaign in ids)


@pytest.mark.parametrize("name", ["../x", "a b", "a\nb", "", "A", "x;y"])
def test_a_name_that_could_leave_the_folder_is_refused(root: Path, name: str) -> None:
    with pytest.raises(LaunchError, match="campaign name"):
        claim_campaign(root, name)
    assert not root.exists()


def test_changes_of_several_processes_are_all_kept(root: Path) -> None:
    path = make_ledger(root, num_jobs=20)
    context = multiprocessing.get_context("forkserver")
    workers = [context.Process(target=_set_job_ids, args=(path, first)) for first in range(4)]
    for worker in workers:
        worker.start()
    for worker in workers:
        worker.join()
    assert [job.job_id for job in read_ledger(path).jobs] == [str(index) for index in range(20)]


def _set_job_ids(path: Path, first: int) -> None:
    for index in range(first, 20, 4):
        with updating(path) as ledger:
            ledger.jobs[index].job_id = str(index)


def test_an_error_changes_nothing(root: Path) -> None:
    path = make_ledger(root)
    before = path.read_bytes()
    with pytest.raises(ValueError, match="stop"), updating(path) as ledger:
        ledger.jobs[0].job_id = "1"
        raise ValueError("stop")
    assert path.read_bytes() == before
    with updating(path) as ledger:  # the lock is free again
        ledger.error = "x"


def _drop_jobs(values: dict[str, object]) -> None:
    del values["jobs"]


def _text_for_a_pid(values: dict[str, object]) -> None:
    values["owner"] = {"pid": "1", "pid_start": 1, "boot_id": "", "host": ""}


def _newer(values: dict[str, object]) -> None:
    values["schema_version"] = 2


@pytest.mark.parametrize(
    ("damage", "message"),
    [(_drop_jobs, "'jobs'"), (_text_for_a_pid, "'owner.pid'"), (_newer, "'schema_version'")],
)
def test_a_ledger_of_another_form_is_refused(
    root: Path, damage: Callable[[dict[str, object]], None], message: str
) -> None:
    path = make_ledger(root)
    values = json.loads(path.read_text())
    damage(values)
    path.write_text(json.dumps(values))
    with pytest.raises(LaunchError, match=f"is no ledger of this version: {re.escape(message)}"):
        read_ledger(path)


@pytest.mark.parametrize("content", ["", "{", "[]", "\x00\xff"])
def test_a_torn_ledger_hides_no_other(root: Path, content: str) -> None:
    broken, whole = make_ledger(root), make_ledger(root)
    broken.write_text(content)
    with pytest.raises(LaunchError) as caught:
        read_ledger(broken)
    assert (caught.value.exit_code, "\n" in str(caught.value)) == (3, False)
    ledgers, problems = read_ledgers(root)
    assert [ledger.campaign for ledger in ledgers] == [whole.stem]
    assert len(problems) == 1
    assert str(broken) in problems[0]


@pytest.mark.parametrize("place", ["file/below", "/proc/below", "/proc/self/status/below"])
def test_a_root_that_cannot_be_written(tmp_path: Path, place: str) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(RunError, match="cannot be written") as caught:
        claim_campaign(tmp_path / place, "swae3d")
    assert caught.value.exit_code == 2


def test_no_such_campaign(root: Path) -> None:
    with pytest.raises(HpcstabError, match="there is no campaign"):
        read_ledger(ledger_path(root, "swae3d_20260101_000000"))
