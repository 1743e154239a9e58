"""A lab for tests: its own folder, so that one that somebody works with is never touched."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import pytest

from tests.conftest import REPOSITORY

_PATH = f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


@dataclass(frozen=True)
class RunningLab:
    """A lab in ``folder``; whether it runs is the test's business."""

    folder: Path

    def verb(self, *arguments: str, expect: int = 0, path: str = _PATH) -> str:
        """Run ``lab.py``; what it printed on both streams."""
        command = [sys.executable, str(REPOSITORY / "jobs/lab/lab.py"), *arguments]
        environment = os.environ | {"HPCSTAB_LAB": str(self.folder), "PATH": path}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=600, check=False)
        answer = result.stdout + result.stderr
        assert result.returncode == expect, answer
        return answer

    def slurm(self, *command: str, expect: int = 0) -> str:
        """Run one of Slurm's own commands; what it printed on both streams."""
        environment = os.environ | {"SLURM_CONF": str(self.slurm_conf)}
        result = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60, check=False)
        answer = result.stdout + result.stderr
        assert result.returncode == expect, answer
        return answer

    def submit(self, script: str, *options: str) -> str:
        """Id of a job of one core and little memory, whose steps and output go nowhere unless options say so."""
        common = ["--parsable", "--mem=100", "--output=/dev/null", "--chdir=/"]
        return self.slurm("sbatch", *common, *options, f"--wrap={script}").strip()

    def submit_running(self, script: str, *options: str) -> str:
        """The same, once it runs."""
        job = self.submit(script, *options)
        self.wait(lambda: self.state(job) == "RUNNING", f"job {job} runs")
        return job

    def shown(self, job: str, name: str) -> str:
        """One value of ``scontrol show job``, e.g. ``shown("12", "Restarts")``."""
        found = re.search(rf"\b{name}=(\S*)", self.slurm("scontrol", "show", "job", job))
        return found[1] if found else ""

    def state(self, job: str) -> str:
        return self.shown(job, "JobState")

    def accounted_states(self, job: str) -> list[str]:
        """State of each attempt, oldest first, from the accounting."""
        rows = self.slurm("sacct", "--duplicates", "--allocations", "--noheader", "--format=State", f"--jobs={job}")
        return [row.split()[0] for row in rows.splitlines()]

    def nodes(self) -> dict[str, str]:
        rows = self.slurm("sinfo", "--noheader", "--Node", "--format=%N %T").splitlines()
        return dict(row.split() for row in rows)

    @property
    def slurm_conf(self) -> Path:
        return self.folder / "conf/slurm.conf"

    def configure(self, text: str) -> None:
        """Give the running controller another slurm.conf."""
        self.slurm_conf.write_text(text)
        self.slurm("scontrol", "reconfigure")

    def cancel_all(self) -> None:
        """Empty the queue; a step that would stay alive until KillWait is over dies of a signal that nobody handles."""
        self.slurm("scancel", "--user=root", "--state=RUNNING", "--signal=USR1")
        self.slurm("scancel", "--user=root")
        self.wait(lambda: not self.slurm("squeue", "--noheader"), "the queue is empty")

    @staticmethod
    def wait(condition: Callable[[], bool], what: str, limit_s: float = 30) -> None:
        end = time.monotonic() + limit_s
        while not condition():
            assert time.monotonic() < end, f"not in {limit_s} s: {what}"
            time.sleep(0.1)

    def processes(self) -> list[str]:
        """Command lines of all processes that this lab has to do with."""
        found = []
        for entry in Path("/proc").iterdir():
            if not entry.name.isdigit() or int(entry.name) == os.getpid():
                continue
            try:
                command = (entry / "cmdline").read_bytes()
                environment = (entry / "environ").read_bytes()
            except OSError:
                continue
            if f"{self.folder}/".encode() in command + b"\0" + environment:
                found.append(command.replace(b"\0", b" ").decode(errors="replace"))
        return found


@contextmanager
def lab_for_tests() -> Iterator[RunningLab]:
    """A lab that is not started yet, and is stopped at the end. Where there can be none the test is skipped, or fails
    with HPCSTAB_REQUIRE_LAB=1."""
    reason = why_no_lab()
    if reason and os.environ.get("HPCSTAB_REQUIRE_LAB") == "1":
        pytest.fail(f"HPCSTAB_REQUIRE_LAB=1, and {reason}", pytrace=False)
    if reason:
        pytest.skip(reason)
    folder = Path(tempfile.mkdtemp(prefix="lab-"))  # a short name: Unix sockets lie in it
    lab = RunningLab(folder)
    try:
        yield lab
    finally:
        if (folder / "lab.json").exists():
            lab.verb("down")
        shutil.rmtree(folder, ignore_errors=True)


def why_no_lab() -> str | None:
    """One line on why a lab cannot start here without changing this machine; None where it can."""
    if os.geteuid():
        return "no lab: it needs root"
    missing = [name for name in ("slurmctld", "slurmd", "slurmdbd", "munged", "mariadbd") if not _is_here(name)]
    if missing:
        return f"no lab: {', '.join(missing)} not installed; `python jobs/lab/lab.py install` does it"
    if subprocess.run(["unshare", "--uts", "true"], capture_output=True, check=False).returncode:
        return "no lab: `unshare --uts` is not allowed here"
    return None


def _is_here(program: str) -> bool:
    return shutil.which(program, path=_PATH) is not None
