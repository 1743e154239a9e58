"""The other ranks of an attempt on one machine: processes that live no longer than the first one trains.

On Slurm srun starts them instead, see :mod:`hpcstab.launch.slurm_job`.
"""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

from hpcstab.launch.starter import job_variables
from hpcstab.rundir import RunDir

_END_S = (
    5.0  # for last words; the others write no file of the run, and where the first one failed they would wait for it
)
_POLL_S = 0.05
# the name under which the training room finds the meeting; torch must not be imported before devices are chosen
_MEETING = "HPCSTAB_MEETING"


@contextlib.contextmanager
def other_ranks(run: RunDir, attempt: int, count: int, threads: int, devices: Sequence[str]) -> Iterator[None]:
    """Start ranks 1 ... of an attempt, each with its own log; this process is rank 0.

    They meet over a file and talk over loopback. Whatever happens in the block, none of them is left.

    Args:
        count: of all ranks; 1 starts none.
        devices: GPUs of the attempt, one for each rank, or none.
    """
    if count == 1:
        yield
        return
    with tempfile.TemporaryDirectory(prefix="hpcstab_ranks_") as folder:
        variables = [_variables(rank, count, Path(folder) / "meeting", devices) for rank in range(count)]
        os.environ.update(variables[0])
        processes: list[subprocess.Popen[bytes]] = []
        try:
            for rank in range(1, count):
                environment = {**os.environ, **job_variables(threads), **variables[rank]}
                processes.append(_start(run, run.log(attempt, rank), environment))
            yield
        finally:
            _end(processes)


def _variables(rank: int, count: int, meeting: Path, devices: Sequence[str]) -> dict[str, str]:
    shown = {"CUDA_VISIBLE_DEVICES": devices[rank]} if devices else {}
    return {
        "RANK": str(rank),
        "WORLD_SIZE": str(count),
        _MEETING: str(meeting),
        "GLOO_SOCKET_IFNAME": "lo",
        "NCCL_SOCKET_IFNAME": "lo",
        **shown,
    }


def _start(run: RunDir, log: Path, environment: dict[str, str]) -> subprocess.Popen[bytes]:
    log.parent.mkdir(exist_ok=True)
    with log.open("ab") as output:
        return subprocess.Popen(
            [sys.executable, "-m", "hpcstab.launch.rank", str(run.path)],
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=output,
            env=environment,
        )


def _end(processes: list[subprocess.Popen[bytes]]) -> None:
    """Wait a little, then kill: a rank ends by itself with the first one, or since it has lost contact with it."""
    deadline = time.monotonic() + _END_S
    while any(process.poll() is None for process in processes) and time.monotonic() < deadline:
        time.sleep(_POLL_S)
    for rank, process in enumerate(processes, start=1):
        if process.poll() is None:
            process.kill()
            process.wait()
        if process.returncode:
            print(f"rank {rank} ended with exit code {process.returncode}", flush=True)
