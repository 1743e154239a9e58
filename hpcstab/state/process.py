"""A process, named so that it stays the same one: to look whether it lives, and to signal it and no other.

A pid alone does not name a process: pids are used again. So a process is named by pid, start time,
boot and host, and a signal is sent only to the process that was meant.
"""

from __future__ import annotations

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
