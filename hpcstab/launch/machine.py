"""Facts about this machine: its processes, cores and GPUs; without torch.

A pid alone does not name a process: pids are used again. So a process is named by pid, start time,
boot and host, and a signal is sent only to the process that was meant.
"""

from __future__ import annotations

import contextlib
import os
import signal
import socket
from pathlib import Path

from pydantic import BaseModel, ConfigDict

from hpcstab.errors import LaunchError

_PROC = Path("/proc")


class Process(BaseModel):
    """One process, for ever: ``pid_start`` is in clock ticks since boot."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid")

    pid: int
    pid_start: int
    boot_id: str
    host: str

    @classmethod
    def current(cls) -> Process:
        """The process that asks."""
        return cls.of(os.getpid())

    @classmethod
    def of(cls, pid: int) -> Process:
        """A process of this machine that runs now, or is a zombie that its parent has not waited for.

        Raises:
            LaunchError: there is none.
        """
        found = _stat(pid)
        if found is None:
            raise LaunchError(f"process {pid} ended before it could be recorded")
        return cls(pid=pid, pid_start=found[1], boot_id=_boot_id(), host=socket.gethostname())

    def is_alive(self) -> bool | None:
        """Whether it runs; a zombie does not. None where it belongs to another host."""
        if self.host != socket.gethostname():
            return None
        if self.boot_id != _boot_id():
            return False
        found = _stat(self.pid)
        return found is not None and found[1] == self.pid_start and found[0] not in "ZX"

    def send_signal(self, number: signal.Signals) -> bool:
        """Signal it, and no other process that has its pid by now; False where it does not run here.

        Raises:
            LaunchError: it belongs to another user.
        """
        handle = _pin(self.pid)
        try:
            if not self.is_alive():
                return False
            if handle is None:
                os.kill(self.pid, number)
            else:
                signal.pidfd_send_signal(handle, number)
        except ProcessLookupError:
            return False
        except PermissionError:
            raise LaunchError(f"process {self.pid} belongs to another user, who has to cancel it") from None
        finally:
            if handle is not None:
                os.close(handle)
        return True


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
        first = (_PROC / "driver/nvidia/version").read_text().splitlines()[0]
    except (OSError, IndexError):
        return None
    return next((word for word in first.split() if word[:1].isdigit()), None)


def thread_variables(threads: int) -> dict[str, str]:
    """What limits the threads of torch and numpy; read by them when they are imported."""
    return dict.fromkeys(("OMP_NUM_THREADS", "MKL_NUM_THREADS", "OPENBLAS_NUM_THREADS"), str(threads))


def _pin(pid: int) -> int | None:
    """A handle that keeps the pid from being used again between check and signal, where the kernel has them."""
    try:
        return os.pidfd_open(pid)
    except (OSError, AttributeError):  # Linux before 5.3, or a Python built for one
        return None


def _stat(pid: int) -> tuple[str, int] | None:
    """(state letter, start in ticks) of a process of this machine, None where there is none."""
    try:
        text = (_PROC / str(pid) / "stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # the command's name stands in parentheses and may hold anything, parentheses too
    fields = text[text.rfind(")") + 1 :].split()
    return (fields[0], int(fields[19])) if len(fields) > 19 else None


def _boot_id() -> str:
    try:
        return (_PROC / "sys/kernel/random/boot_id").read_text().strip()
    except OSError:
        return "unknown"
