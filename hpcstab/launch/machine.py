"""Facts about this machine: its cores and GPUs, and the processes on it; without torch."""

from __future__ import annotations

import contextlib
import os
from pathlib import Path


def num_cores() -> int:
    """Cores that this process may use: its affinity, cut by the CPU quota of a container."""
    cores = len(os.sched_getaffinity(0))
    with contextlib.suppress(OSError, ValueError):
        quota, period = Path("/sys/fs/cgroup/cpu.max").read_text().split()
        cores = min(cores, max(1, int(quota) // int(period)))
    return cores


def gpu_devices() -> list[str] | None:
    """GPUs as CUDA_VISIBLE_DEVICES names them; None where there are none and nothing is to be hidden.

    CUDA counts what it finds from 0: in a container /dev/nvidia3 alone is its device 0.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible is not None:
        return [device.strip() for device in visible.split(",") if device.strip()]
    nodes = [path for path in Path("/dev").glob("nvidia[0-9]*") if path.name.removeprefix("nvidia").isdigit()]
    return [str(index) for index in range(len(nodes))] or None


def gpu_driver() -> str | None:
    """Version of the NVIDIA driver, None where there is none."""
    try:
        first = Path("/proc/driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit()), None)


def thread_variables(threads: int) -> dict[str, str]:
    """What limits the threads of torch and numpy; read by them when they are imported."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))
