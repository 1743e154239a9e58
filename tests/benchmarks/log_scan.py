"""How fast a long log is read, and in how much memory; printed, never asserted: ``make bench``."""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

LOG_BYTES = 1_000_000_000


def write_log(path: Path) -> None:
    """Steps with a loss, as many as fit; the very last one is NaN."""
    lines = b"".join(
        b"2026-11-03 04:11:09,123 INFO step %d/3000000 loss: %.5f grad_norm: %.3f lr: 1e-3\n" % (step, 2.3, 0.9)
        for step in range(100_000)
    )
    with path.open("wb") as file:
        for _ in range(LOG_BYTES // len(lines)):
            file.write(lines)
        file.write(b"step 3000000 loss: nan\n")


MEASURE = """
import resource, sys, time
from pathlib import Path
from hpcstab.explain.log_scan import scan_log
before, wall, cpu = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss, time.perf_counter(), time.process_time()
scan = scan_log(Path(sys.argv[1]))
assert scan.nonfinite.step == 3000000
wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
grown = (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) / 1024
print(f"log of {scan.num_bytes / 1e9:.2f} GB, {scan.num_lines:,} lines: "
      f"{wall:.1f} s ({cpu:.1f} s of CPU), {grown:.0f} MiB more memory")
"""
"""In a process of its own, whose memory nothing else has raised."""


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "train.log"
        write_log(path)
        subprocess.run([sys.executable, "-c", MEASURE, str(path)], check=True)


if __name__ == "__main__":
    main()
