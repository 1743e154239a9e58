"""Folders that a node does not see, for real: one clear line, the right exit code, and no job that just vanished.

Only the submitter sees them: they are mounted in a mount namespace of its own.
"""

from __future__ import annotations

import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstab.launch.scheduler import ended_jobs_named, job_answers
from hpcstab.state.ledger import read_ledgers
from tests.slurm.conftest import Lab, wait_for, wait_for_end

pytestmark = pytest.mark.slurm

SUBMIT = "submit swae3d --scale tiny --variants before --seeds 0-1 --cluster lab"


def alone(mount: str, *commands: str) -> subprocess.CompletedProcess[str]:
    """Run shell commands that see a mount which nobody else sees; the last one's exit code."""
    return subprocess.run(
        ["unshare", "--mount", "sh", "-c", "; ".join([f"{mount} || exit 99", *commands])],
        capture_output=True,
        text=True,
        timeout=120,
    )


def hpcstab(python: str | Path = sys.executable) -> str:
    return f"{shlex.quote(str(python))} -m hpcstab"


def test_a_run_root_that_no_node_sees(lab: Lab, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    command, root = hpcstab(), f"--root {hidden}/runs"
    done = alone(
        f"mount -t tmpfs none {hidden}",
        f"cd {tmp_path}",
        f"{command} {SUBMIT} {root} --wait 2>waited.err; echo $? > waited.rc",
        f"{command} status {root}",
        f"{command} logs _s0_ {root}",
    )
    line = f"does not see '{hidden}/runs', or may not write there: put --root on a file system that the nodes share"
    assert (tmp_path / "waited.rc").read_text() == "3\n"
    waited = (tmp_path / "waited.err").read_text()
    assert re.fullmatch(rf"hpcstab: no run was started: node n[12] {re.escape(line)}\n", waited)
    rows = [row.split("\t") for row in done.stdout.splitlines() if row.startswith("swae3d/before/")]
    assert [(row[1], row[-1].split(" ", 2)[2]) for row in rows] == [("failed", line)] * 2
    assert done.stdout.splitlines()[-1] == "2 runs: 2 failed"
    assert (done.returncode, done.stderr.count("\n")) == (3, 1)
    assert re.search(rf"printed nothing, it is failed: node n[12] {re.escape(line)}\n$", done.stderr)
    assert not (tmp_path / "reports").exists(), "there is nothing to report on"


def test_accounting_tells_it_when_the_queue_has_forgotten(lab: Lab, tmp_path: Path) -> None:
    hidden = tmp_path / "hidden"
    hidden.mkdir()
    done = alone(f"mount -t tmpfs none {hidden}", f"{hpcstab()} {SUBMIT} --root {hidden}/runs --no-wait")
    assert done.returncode == 0, done.stderr
    job = done.stdout.splitlines()[0].split("job ")[1]
    wait_for(lambda: job_answers([job])[job].state == "FAILED", "the end of the job", 20)
    assert job_answers([job])[job].could_not_launch

    def in_accounting() -> bool:
        found = ended_jobs_named([job_answers([job])[job].name], 0.0)
        return job in found and found[job].state == "FAILED" and found[job].could_not_launch

    wait_for(in_accounting, "what accounting says", 30)


def test_a_python_that_no_node_sees(lab: Lab, root: Path, tmp_path: Path) -> None:
    hidden = tmp_path / "environment"
    hidden.mkdir()
    python = hidden / "bin" / "python"
    done = alone(f"mount --bind {sys.prefix} {hidden}", f"{hpcstab(python)} {SUBMIT} --root {root} --no-wait")
    assert done.returncode == 0, done.stderr
    (ledger,), _ = read_ledgers(root)
    line = f"does not see {python}: install hpcstab on a file system that the nodes share"
    for state in wait_for_end(root, ledger.campaign, 30):
        assert (state.state, str(state.detail).split(" ", 2)[2]) == ("failed", line)
    logs = subprocess.run(
        [sys.executable, "-m", "hpcstab", "logs", "_s0_", "--root", str(root)], capture_output=True, text=True
    )
    assert logs.returncode == 0
    assert f"execve(): {python}: No such file or directory" in logs.stdout
    assert logs.stderr.endswith("_0_0_log.out\n"), "what submitit caught of a job that had no attempt"
