"""What a job on Slurm does beside its training: who it is, and how it ends when it was asked to.

After a stop request and its checkpoint the job is over only if Slurm says so. A step that exits on TERM during
GraceTime ends its job as COMPLETED, and it is never queued again; one that asks to be queued again when it was
cancelled comes back. So it asks in one case alone, near its time limit, and else stays until it is killed.
"""

from __future__ import annotations

import os
import socket
import sys
import time
import zlib
from typing import Any

import submitit

from hpcstab.errors import LaunchError
from hpcstab.launch import scheduler
from hpcstab.rundir import RunDir, read_json

_MARGIN_S = 60.0  # Slurm may send the announced signal so much early
_ASK_EVERY_S = 15.0
_FIRST_PORT, _NUM_PORTS = 20_000, 12_000


def job_id() -> str:
    """``<array>_<task>``, or the id of a job that is no array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def take_rank(run: RunDir) -> int:
    """This task's rank among those that srun started; of several it takes its GPU, and where they meet."""
    own = submitit.JobEnvironment()
    if own.num_tasks == 1:
        return 0
    os.environ.update(
        RANK=str(own.global_rank),
        WORLD_SIZE=str(own.num_tasks),
        MASTER_ADDR=_address(own.hostnames[0]),
        MASTER_PORT=str(_port(run)),
    )
    if devices := _visible():
        os.environ["CUDA_VISIBLE_DEVICES"] = devices[own.local_rank % len(devices)]
    return int(own.global_rank)


def _port(run: RunDir) -> int:
    """Below the ports that a kernel gives away, the same on all ranks, and another one for another run or attempt.

    Not from the job's id alone: two clusters on one machine have jobs of one id.
    """
    name = f"{run.path} {job_id()} {os.environ.get('SLURM_RESTART_COUNT')}"
    return _FIRST_PORT + zlib.crc32(name.encode()) % _NUM_PORTS


def _address(node: str) -> str:
    """A node's name where it is a host's as well, else where Slurm reaches it."""
    try:
        socket.getaddrinfo(node, None)
    except OSError:
        return scheduler.node_address(node)
    return node


def _visible() -> list[str]:
    return [device for device in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if device]


def facts() -> dict[str, Any]:
    """For the record of the attempt; a device that Slurm names need not work. To be asked before :func:`take_rank`."""
    own = submitit.JobEnvironment()
    nodes = own.hostnames
    devices = _visible() if len(nodes) == 1 else [f"{node}:{device}" for node in nodes for device in _visible()]
    return {
        "job_id": job_id(),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
        "devices": devices,
        "ranks": own.num_tasks,
        **({"nodes": nodes} if len(nodes) > 1 else {}),
        **({"node": os.environ["SLURMD_NODENAME"]} if "SLURMD_NODENAME" in os.environ else {}),
    }


def wait_for_the_end() -> None:
    """What another rank does after a stop request: the first one decides, and this one must not end before it."""
    while True:
        time.sleep(_ASK_EVERY_S)


def queue_again_after_loss(run: RunDir) -> bool:
    """Where a rank was lost, to a node, a GPU or the memory, ask for the job to be queued again; whether it will be.

    Only if this attempt has left a checkpoint: one that dies before its first would die for ever.
    """
    job, status = job_id(), read_json(run.status_json) or {}
    saved = [int(path.name.removeprefix("step_")) for path in run.checkpoints.glob("step_" + "[0-9]" * 8)]
    if max(saved, default=0) <= status.get("first_step", 0):
        print(f"job {job} has saved nothing since this attempt began: it is not queued again", flush=True)
        return False
    try:
        if scheduler.job_state(job) != "RUNNING":  # a cancelled job must not come back
            return False
        scheduler.requeue(job)
    except LaunchError as error:
        print(f"job {job}: {error}", flush=True)
        return False
    print(f"job {job} goes on from its last checkpoint: queued again", flush=True)
    return True


def end_after_stop(signal_lead_s: float) -> None:
    """Near the time limit ask to be queued again; else stay alive until Slurm kills the job."""
    job = job_id()
    print(f"job {job} was asked to stop and has saved its state", flush=True)
    while not _ask_again(job, signal_lead_s):
        time.sleep(_ASK_EVERY_S)
    # at once: what submitit writes at the end must not be cut by the kill that follows
    sys.stdout.flush()
    os._exit(0)


def _ask_again(job: str, signal_lead_s: float) -> bool:
    """Requeue the job if it runs out of time and nothing else ends it; False where it must wait."""
    try:
        left = scheduler.time_left_s(job)
        if left is None or left > signal_lead_s + _MARGIN_S or scheduler.job_state(job) != "RUNNING":
            return False
        scheduler.requeue(job)
    except LaunchError as error:
        print(f"job {job}: {error}", flush=True)
        return False
    print(f"job {job} has {left:.0f} s left: queued again", flush=True)
    return True
