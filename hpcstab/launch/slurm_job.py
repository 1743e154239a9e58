"""What a job on Slurm does beside its training: who it is, and how it ends when it was asked to.

After a stop request and its checkpoint the job is over only if Slurm says so. A step that exits on TERM during
GraceTime ends its job as COMPLETED, and it is never queued again; one that asks to be queued again when it was
cancelled comes back. So it asks in one case alone, near its time limit, and else stays until it is killed.
"""

from __future__ import annotations

import os
import sys
import time
from typing import Any

from hpcstab.errors import LaunchError
from hpcstab.launch import scheduler

_MARGIN_S = 60.0  # Slurm may send the announced signal so much early
_ASK_EVERY_S = 15.0


def job_id() -> str:
    """``<array>_<task>``, or the id of a job that is no array."""
    array = os.environ.get("SLURM_ARRAY_JOB_ID")
    return f"{array}_{os.environ['SLURM_ARRAY_TASK_ID']}" if array else os.environ["SLURM_JOB_ID"]


def facts() -> dict[str, Any]:
    """For the record of the attempt; a device that Slurm names need not work."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES", "")
    return {
        "job_id": job_id(),
        "restart_count": int(os.environ.get("SLURM_RESTART_COUNT") or 0),
        "partition": os.environ.get("SLURM_JOB_PARTITION"),
        "devices": [device for device in visible.split(",") if device],
        **({"node": os.environ["SLURMD_NODENAME"]} if "SLURMD_NODENAME" in os.environ else {}),
    }


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
