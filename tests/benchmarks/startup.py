"""Timings of what a user waits for, printed and never asserted: ``make bench``.

Whole processes, wall clock, the median of several after one warm-up, beside bare Python in the same round.
"""

from __future__ import annotations

import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from tests.golden.make import GOLDEN

ROUNDS = 9
NUM_RUNS = 200


def seconds(command: list[str]) -> float:
    started = time.perf_counter()
    done = subprocess.run(command, capture_output=True)
    assert done.returncode in (0, 1), done.stderr  # 1: why has bad news
    return time.perf_counter() - started


def many_runs(root: Path) -> None:
    """``NUM_RUNS`` copies of the golden run, as a root that has been used for a while."""
    for number in range(NUM_RUNS):
        name = f"20260101_{number // 3600:02d}{number // 60 % 60:02d}{number % 60:02d}_s{number}_0123abcd"
        shutil.copytree(GOLDEN, root / "swae3d" / "after" / name)


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        many_runs(Path(folder))
        hpcstab = [sys.executable, "-m", "hpcstab"]
        commands = {
            "python -c pass": [sys.executable, "-c", "pass"],
            "hpcstab --help": [*hpcstab, "--help"],
            "hpcstab list": [*hpcstab, "list"],
            "hpcstab show swae3d --diff": [*hpcstab, "show", "swae3d", "--diff"],
            f"hpcstab status ({NUM_RUNS} runs)": [*hpcstab, "status", "--root", folder],
            f"hpcstab runs ({NUM_RUNS} runs)": [*hpcstab, "runs", "--root", folder],
            "hpcstab why RUN, files alone": [*hpcstab, "why", "_s7_", "--no-replay", "--no-scan", "--root", folder],
        }
        times: dict[str, list[float]] = {name: [] for name in commands}
        for round_number in range(ROUNDS + 1):
            for name, command in commands.items():
                taken = seconds(command)
                if round_number:
                    times[name].append(taken)
    bare = statistics.median(times["python -c pass"])
    print(f"{'command':<30} {'median s':>9} {'min':>7} {'max':>7} {'/ python':>9}")
    for name, taken_s in times.items():
        median = statistics.median(taken_s)
        print(f"{name:<30} {median:>9.3f} {min(taken_s):>7.3f} {max(taken_s):>7.3f} {median / bare:>9.1f}")


if __name__ == "__main__":
    main()
