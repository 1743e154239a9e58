"""A process is named for ever: dead ones, zombies and those with a used pid are told apart."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from hpcstab.errors import LaunchError
from hpcstab.launch.machine import gpu_devices, num_cores
from hpcstab.state.process import Process
from tests.launch.conftest import wait_until


def sleeper() -> subprocess.Popen[bytes]:
    return subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])


def test_alive_then_zombie_then_gone() -> None:
    child = sleeper()
    process = Process.of(child.pid)
    assert process.is_alive() is True
    child.kill()
    wait_until(lambda: " Z " in Path(f"/proc/{child.pid}/stat").read_text(), "the zombie")
    assert process.is_alive() is False, "its parent has not waited for it, but it is dead"
    child.wait()
    assert process.is_alive() is False


def test_a_pid_used_again_is_another_process() -> None:
    child = sleeper()
    try:
        earlier = Process.of(child.pid).model_copy(update={"pid_start": 1})
        assert earlier.is_alive() is False
        assert earlier.send_signal(signal.SIGKILL) is False
        assert child.poll() is None, "the signal must not reach the process that has the pid now"
        before_reboot = Process.of(child.pid).model_copy(update={"boot_id": "another"})
        assert before_reboot.send_signal(signal.SIGKILL) is False
        assert child.poll() is None
        assert Process.of(child.pid).send_signal(signal.SIGTERM) is True
        assert child.wait(10) == -signal.SIGTERM
    finally:
        child.kill()
        child.wait()


def test_another_host_is_not_known_from_here() -> None:
    elsewhere = Process.current().model_copy(update={"host": "elsewhere"})
    assert elsewhere.is_alive() is None
    assert elsewhere.send_signal(signal.SIGTERM) is False


def test_signals_without_pidfd(monkeypatch: pytest.MonkeyPatch) -> None:
    def absent(pid: int) -> int:
        raise OSError(38, "Function not implemented")

    monkeypatch.setattr(os, "pidfd_open", absent)
    child = sleeper()
    assert Process.of(child.pid).send_signal(signal.SIGTERM) is True
    assert child.wait(10) == -signal.SIGTERM


def test_no_process_no_record() -> None:
    with pytest.raises(LaunchError, match="ended before"):
        Process.of(2**22 + 1)


def test_num_cores_is_what_this_process_may_use() -> None:
    assert 1 <= num_cores() <= len(os.sched_getaffinity(0))


@pytest.mark.parametrize(
    ("visible", "devices"), [("0,2", ["0", "2"]), ("", []), ("GPU-8f1, MIG-3", ["GPU-8f1", "MIG-3"])]
)
def test_gpus_that_the_user_hides_stay_hidden(
    monkeypatch: pytest.MonkeyPatch, visible: str, devices: list[str]
) -> None:
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert gpu_devices() == devices
