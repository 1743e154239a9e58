"""Logs: the attempt's own, else what is left of a job that never had one."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from hpcstab.errors import RunError
from hpcstab.launch.cancel import cancel
from hpcstab.launch.logs import follow, log_file, tail, wait_for_log
from hpcstab.rundir import RunDir
from hpcstab.state.ledger import ledger_path, submission_folder
from tests.launch.conftest import Submit, states, wait_for_end, wait_until


@pytest.mark.parametrize(
    ("content", "num_lines", "expected"),
    [
        (b"a\nb\nc\n", 2, "b\nc\n"),
        (b"a\nb\nc", 1, "c"),
        (b"a\n", 9, "a\n"),
        (b"", 3, ""),
        (b"a\n", 0, ""),
        (b"\xff\n" + b"x" * 100_000 + b"\nend\n", 2, "x" * 100_000 + "\nend\n"),
        (b"\xffz\n", 1, "\N{REPLACEMENT CHARACTER}z\n"),
    ],
)
def test_tail(tmp_path: Path, content: bytes, num_lines: int, expected: str) -> None:
    path = tmp_path / "log"
    path.write_bytes(content)
    assert tail(path, num_lines) == (expected, len(content))


def test_follow_ends_with_the_run(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=wait", [0])
    run = RunDir(root / ledger.jobs[0].run_id)
    path = wait_for_log(run)
    assert path == run.log(1)
    threading.Timer(0.5, cancel, (ledger.campaign, root)).start()
    printed = "".join(follow(run, path, 0))
    assert printed == path.read_text()
    assert printed.splitlines()[-1] == "attempt 1 ended: SIGTERM, 1 steps"


def test_a_job_that_died_before_its_attempt(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("0=wait,1=wait", [0, 1], parallel_runs=1)
    wait_until(lambda: states(root, ledger.campaign)[0] == "running", "the first run")
    run = RunDir(root / ledger.jobs[1].run_id)
    assert log_file(run) is None, "it is in the queue: what submitit prints is not its output"
    run.run_json.unlink()  # the job finds no run
    cancel(ledger.jobs[0].run_id, root)
    wait_for_end(root, ledger.campaign)
    assert states(root, ledger.campaign)[1] == "lost"
    path = wait_for_log(run)
    assert path is not None
    assert path.parent == submission_folder(ledger_path(root, ledger.campaign))
    assert "is no run folder" in path.read_text()


def test_an_attempt_that_does_not_exist(submit_fake: Submit, root: Path) -> None:
    ledger = submit_fake("", [0])
    wait_for_end(root, ledger.campaign)
    run = RunDir(root / ledger.jobs[0].run_id)
    assert log_file(run, 1) == run.log(1)
    with pytest.raises(RunError, match="no attempt 2; there are: 1") as caught:
        log_file(run, 2)
    assert caught.value.exit_code == 2


def test_each_rank_has_a_log_of_its_own(tmp_path: Path) -> None:
    run = RunDir(tmp_path / "swae3d" / "before" / "20261126_120000_s0_00000000")
    for path in (run.attempt_json(1), run.log(1), run.log(1, 3)):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("{}")
    assert log_file(run, rank=3) == run.logs / "001_rank3.log"
    assert run.logs_of(1) == [run.log(1), run.log(1, 3)]
    with pytest.raises(RunError, match="no log of rank 2"):
        log_file(run, rank=2)
