"""What the doctor's scan of a 2 GB checkpoint costs, printed and never asserted: ``make bench``.

Beside one pass of ``hashlib.sha256`` over the same file, in the same process and in turning order; the ratio is taken
within a round. Files are in the page cache: what is compared is work, not the disk. ``sha256 again`` is the noise.
``python -m tests.benchmarks.doctor_scan --out reports/bench/doctor.md`` writes the table that is committed.
"""

from __future__ import annotations

import argparse
import hashlib
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from safetensors.torch import save_file

from hpcstab.checkpoint import write_checkpoint
from hpcstab.doctor import diagnose
from tests.benchmarks.step_cost import facts_of, interval

ROUNDS = 11
BYTES = 2_000_000_000
READ_BYTES = 1 << 20
HEAD = """# What the doctor's scan costs

Made by `python -m tests.benchmarks.doctor_scan --out {out}`. Each file has {gigabytes:.1f} GB in the page cache.
`scan` is `hpcstab.doctor.diagnose` in a process that has imported torch: one pass that digests (SHA-256 for a folder of
hpcstab, CRC for other files of torch.save, nothing for safetensors, which keeps no checksum) and looks at every value.
Its ratio is to a pass of `hashlib.sha256` over the same file in the same round, the interval a bootstrap of the median;
`processor` is that ratio in processor time, which a busy machine disturbs less; `again` that of a second digest: the
noise. `memory` is the highest RssAnon during a scan above that before it, in MiB; `command` the seconds of the whole
process.
"""


def weights(num_bytes: int, dtype: torch.dtype, size: int) -> dict[str, torch.Tensor]:
    """Matrices of ``size`` x ``size`` between normalisation layers, as many as fill ``num_bytes``."""
    state: dict[str, torch.Tensor] = {}
    each = size * size * dtype.itemsize
    for index in range(max(1, num_bytes // each)):
        state[f"layers.{index}.weight"] = torch.randn(size, size, dtype=dtype)
        for name in ("running_mean", "running_var"):
            state[f"layers.{index}.norm.{name}"] = torch.rand(size)
    return state


def training(num_bytes: int) -> dict[str, object]:
    """A third each for the weights and for the two moments of Adam."""
    network = weights(num_bytes // 3, torch.float32, 1024)
    moments = {
        index: {"step": torch.tensor(9.0), "exp_avg": torch.randn_like(value), "exp_avg_sq": torch.rand_like(value)}
        for index, value in enumerate(value for name, value in network.items() if name.endswith("weight"))
    }
    return {"network": network, "optimizer": {"state": moments, "param_groups": [{"lr": 1e-3}]}, "step": 9}


def files(folder: Path, num_bytes: int) -> dict[str, tuple[Path, Path]]:
    """(what is scanned, the file to digest beside it) by name."""
    torch.manual_seed(0)
    write_checkpoint(folder / "step_00000009", training(num_bytes), {"step": 9, "healthy": True})
    ours = folder / "step_00000009"
    torch.save(training(num_bytes), folder / "training.pt")
    torch.save(weights(num_bytes, torch.bfloat16, 4096), folder / "bf16.pt")
    torch.save(weights(num_bytes, torch.float32, 512), folder / "small_tensors.pt")
    save_file(weights(num_bytes, torch.float16, 4096), folder / "fp16.safetensors")
    found = {"folder of hpcstab, fp32": (ours, ours / "state.pt")}
    for name in ("training.pt", "bf16.pt", "small_tensors.pt", "fp16.safetensors"):
        found[name] = (folder / name, folder / name)
    return found


def digest(path: Path) -> None:
    sha256 = hashlib.sha256()
    with path.open("rb") as file:
        while chunk := file.read(READ_BYTES):
            sha256.update(chunk)


def seconds(work: Callable[[], object]) -> tuple[float, float]:
    """(wall clock, processor) seconds; the second is what a busy machine leaves comparable."""
    started = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - started[0], time.process_time() - started[1]


class Anonymous:
    """Watches the process's anonymous memory from a thread."""

    def __enter__(self) -> Anonymous:
        self._before = self.highest = _anonymous_mib()
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopped.set()
        self._thread.join()
        self.added_mib = self.highest - self._before

    def _watch(self) -> None:
        while not self._stopped.wait(0.002):
            self.highest = max(self.highest, _anonymous_mib())


def _anonymous_mib() -> float:
    text = Path("/proc/self/status").read_text()
    return float(next(line.split()[1] for line in text.splitlines() if line.startswith("RssAnon"))) / 1024


def memory_mib(scanned: Path) -> float:
    """What a scan adds in a process that has done nothing else."""
    command = [sys.executable, "-m", "tests.benchmarks.doctor_scan", "--memory", str(scanned)]
    return float(subprocess.run(command, check=True, capture_output=True, text=True).stdout)


def row(name: str, scanned: Path, digested: Path, rounds: int) -> str:
    forms: list[Callable[[], object]] = [
        lambda: digest(digested),
        lambda: diagnose(scanned),
        lambda: digest(digested),
    ]
    diagnosis = diagnose(scanned)
    assert diagnosis.verdict == "healthy", diagnosis.sick
    digest(digested)
    taken = np.zeros((rounds, len(forms), 2))
    for index in range(rounds):
        for turn in range(len(forms)):
            form = (index + turn) % len(forms)
            taken[index, form] = seconds(forms[form])
    process = [sys.executable, "-m", "hpcstab", "doctor", str(scanned)]
    command, _ = seconds(lambda: subprocess.run(process, check=True, capture_output=True))
    ratios, again = taken[:, 1] / taken[:, 0], taken[:, 2, 0] / taken[:, 0, 0]
    sha, scan = np.median(taken[:, 0, 0]), np.median(taken[:, 1, 0])
    wall, processor = np.median(ratios, axis=0)
    return (
        f"| {name} | {diagnosis.num_tensors} | {sha:.2f} | {scan:.2f} | {wall:.3f} | {span(ratios[:, 0])}"
        f" | {processor:.3f} | {span(again)} | {memory_mib(scanned):.0f} | {command:.1f} |"
    )


def span(ratios: np.ndarray) -> str:
    low, high = interval(ratios)
    return f"{low:.3f} to {high:.3f}"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--bytes", type=int, default=BYTES)
    parser.add_argument("--memory", type=Path, metavar="FILE", help="only print what a scan of it adds, in MiB")
    options = parser.parse_args()
    if options.memory is not None:
        with Anonymous() as memory:
            diagnose(options.memory)
        print(memory.added_mib)
        return
    torch.set_num_threads(1)
    facts = facts_of(torch.device("cpu"))
    table = [
        "| file | tensors | sha256 s | scan s | scan / sha256 | 95 % interval | processor | again | memory | command |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    print(facts, *table, sep="\n", flush=True)
    with tempfile.TemporaryDirectory() as folder:
        for name, (scanned, digested) in files(Path(folder), options.bytes).items():
            table.append(row(name, scanned, digested, options.rounds))
            print(table[-1], flush=True)
    if options.out is not None:
        head = HEAD.format(out=options.out, gigabytes=options.bytes / 1e9)
        options.out.write_text("\n".join([head, facts, "", *table]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
