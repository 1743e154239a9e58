"""Slots: never more than there are, first come first served, free again whatever becomes of the holder."""

from __future__ import annotations

import multiprocessing
import time
from multiprocessing.process import BaseProcess
from pathlib import Path

from hpcstab.launch.slots import slot
from tests.launch.conftest import wait_until

PROCESSES = multiprocessing.get_context("forkserver")  # this process has the threads of torch: no fork of it
PROCESSES.set_forkserver_preload(["tests.launch.test_slots", "tests.launch.test_ledger"])


def hold(root: Path, name: str, parallel_runs: int, seconds: float) -> None:
    """Append what happens to a file: one short write a line, so the order is that of the events."""
    with (root / "events").open("a", buffering=1) as events, slot(root, parallel_runs) as number:
        events.write(f"{name} holds {number}\n")
        time.sleep(seconds)
        events.write(f"{name} leaves\n")


def start(root: Path, name: str, parallel_runs: int, seconds: float) -> BaseProcess:
    """A process that holds a slot, or waits for one: the kernel lists its lock."""
    root.mkdir(exist_ok=True)
    process = PROCESSES.Process(target=hold, args=(root, name, parallel_runs, seconds))
    process.start()
    wait_until(lambda: f" {process.pid} " in Path("/proc/locks").read_text(), f"{name} in the queue")
    return process


def events_of(root: Path) -> list[str]:
    return (root / "events").read_text().splitlines() if (root / "events").exists() else []


def test_never_more_than_there_are(root: Path) -> None:
    for process in [start(root, f"job{index}", 2, 0.2) for index in range(5)]:
        process.join()
    held = [0]
    for event in events_of(root):
        held.append(held[-1] + {"holds": 1, "leaves": -1}[event.split()[1]])
    assert (len(held), max(held), held[-1]) == (11, 2, 0)
    assert {event.split()[2] for event in events_of(root) if "holds" in event} == {"0", "1"}


def test_first_come_first_served(root: Path) -> None:
    names = [f"job{index}" for index in range(6)]
    holder = start(root, names[0], 1, 3.0)
    for process in [holder, *(start(root, name, 1, 0.0) for name in names[1:])]:
        process.join()
    assert [event.split()[0] for event in events_of(root) if "holds" in event] == names


def test_a_killed_holder_frees_its_slot(root: Path) -> None:
    holder = start(root, "holder", 1, 60)
    wait_until(lambda: "holder holds 0" in events_of(root), "the holder")
    waiter = start(root, "waiter", 1, 0)
    assert "waiter holds 0" not in events_of(root)
    holder.kill()
    holder.join()
    waiter.join(10)
    assert "waiter holds 0" in events_of(root)


def test_who_is_killed_in_the_queue_is_passed_over(root: Path) -> None:
    holder = start(root, "holder", 1, 1.0)
    wait_until(lambda: "holder holds 0" in events_of(root), "the holder")
    first, second = start(root, "first", 1, 0), start(root, "second", 1, 0)
    first.kill()
    first.join()
    for process in (second, holder):
        process.join(10)
    assert "second holds 0" in events_of(root)
    assert "first holds 0" not in events_of(root)
