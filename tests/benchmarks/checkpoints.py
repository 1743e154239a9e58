"""What a save of about 1 GB costs, printed and never asserted: ``make bench``.

All forms in one process, each once a round in turning order, so that the noise of machine and disk hits all; ratios
are taken within a round. ``again`` repeats the form that others are compared with: it shows the noise.
``python -m tests.benchmarks.checkpoints --realtime --out reports/bench/checkpoints.md`` writes the table that is
committed: digest and writing go side by side, which no machine shows whose cores have other work. ``--realtime`` (root)
takes the cores for one form at a time and leaves them to others in between.
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import statistics
import tempfile
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from hpcstab.checkpoint import read_checkpoint, write_checkpoint
from hpcstab.checkpoint.background import BackgroundWriter
from hpcstab.checkpoint.snapshot import Snapshot
from hpcstab.stability.finite import nonfinite_names
from tests.benchmarks.step_cost import facts_of, interval

ROUNDS = 15
HEAD = """# What a checkpoint costs

Made by `python -m tests.benchmarks.checkpoints{options}`: network and AdamW of a transformer, {size:.2f} GB in
{count} tensors. Every form once a round in turning order; ratios are those of a round, the interval a bootstrap
of their median. `again` is the noise: where its interval leaves 1, nothing finer can be read from the table.

- `write_checkpoint` writes the same bytes as `torch.save` + fsync, makes their SHA-256 meanwhile, brings
  manifest, folder and the folder's entry to disk, and renames.
- `a step waits`: the copy of the state and the hand-over to the thread that writes. `steps meanwhile`: what
  steps of a small network lose in all while that thread looks for NaN in the copy and writes it; they do not
  wait for it, but share cores and memory with it.
- `verify and load` is `read_checkpoint`: SHA-256 of every byte, then `torch.load`.
"""
Form = Callable[[], float]


class Forms:
    """Every way to save and load the state, as functions that return the seconds they took."""

    def __init__(self, folder: Path, device: torch.device) -> None:
        self.folder, self.device = folder, device
        network = nn.Sequential(*(nn.TransformerEncoderLayer(1024, 16, 4096) for _ in range(7))).to(device)
        optimizer = torch.optim.AdamW(network.parameters())
        for parameter in network.parameters():
            parameter.grad = torch.randn_like(parameter)
        optimizer.step()
        optimizer.zero_grad()
        self.state = {"network": network.state_dict(), "optimizer": optimizer.state_dict()}
        moments = [value for values in optimizer.state.values() for value in values.values()]
        self.tensors = [*network.state_dict().values(), *moments]
        self._snapshot, self._writer = Snapshot(), BackgroundWriter()
        self._small = nn.Sequential(nn.Linear(256, 512), nn.ReLU(), nn.Linear(512, 256)).to(device)
        self._inputs = torch.randn(1024, 256, device=device)
        self._lost_s = float("nan")

    def torch_save(self) -> float:
        with self._file() as path:
            return self._timed(lambda: torch.save(self.state, path))

    def torch_save_and_fsync(self) -> float:
        def save() -> None:
            with path.open("wb") as file:
                torch.save(self.state, file)
                file.flush()
                os.fsync(file.fileno())

        with self._file() as path:
            return self._timed(save)

    def write_checkpoint(self) -> float:
        with self._file() as path:
            return self._timed(lambda: write_checkpoint(path, self.state, {}))

    def a_step_waits(self) -> float:
        """Until the next step may begin; then steps run until the checkpoint is written."""
        quiet_s = statistics.median(self._step() for _ in range(100))
        with self._file() as path:
            waited_s = self._timed(lambda: self._begin(path))
            self._lost_s, is_done = 0.0, False
            while not is_done:
                self._lost_s += self._step() - quiet_s
                is_done = any(True for _ in self._writer.tries())
            self._writer.finish()
        return waited_s

    def steps_meanwhile(self) -> float:
        """What :meth:`a_step_waits` has measured of it in this round."""
        return self._lost_s

    def torch_load(self) -> float:
        with self._file() as path:
            write_checkpoint(path, self.state, {})
            return self._timed(lambda: torch.load(path / "state.pt", weights_only=True))

    def verify_and_load(self) -> float:
        with self._file() as path:
            write_checkpoint(path, self.state, {})
            return self._timed(lambda: read_checkpoint(path))

    def _begin(self, path: Path) -> None:
        copied = self._snapshot.take({"state": self.state, "watched": {str(i): t for i, t in enumerate(self.tensors)}})

        def write() -> None:
            copy = copied()
            assert not nonfinite_names(copy["watched"].items())
            write_checkpoint(path, copy["state"], {})

        self._writer.begin(write)

    def _step(self) -> float:
        def step() -> None:
            self._small(self._inputs).square().mean().backward()

        return self._timed(step)

    def _timed(self, call: Callable[[], Any]) -> float:
        self._wait()
        started = time.perf_counter()
        call()
        self._wait()
        return time.perf_counter() - started

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()

    def _file(self) -> _Removed:
        return _Removed(self.folder / "saved")


class _Removed:
    """A path for one save, gone behind it with all that waits to be written to disk."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __enter__(self) -> Path:
        return self._path

    def __exit__(self, *_: object) -> None:
        shutil.rmtree(self._path) if self._path.is_dir() else self._path.unlink()
        os.sync()


COMPARED = {
    "torch.save": "torch.save",
    "torch.save again": "torch.save",
    "a step waits": "torch.save",
    "steps meanwhile": "torch.save",
    "torch.save + fsync": "torch.save + fsync",
    "torch.save + fsync again": "torch.save + fsync",
    "write_checkpoint": "torch.save + fsync",
    "torch.load": "torch.load",
    "verify and load": "torch.load",
}
"""What each form is compared with."""


@contextlib.contextmanager
def cores(*, realtime: bool) -> Iterator[None]:
    """A block that no ordinary process interrupts, and a moment for those afterwards."""
    if not realtime:
        yield
        return
    os.sched_setscheduler(0, os.SCHED_FIFO, os.sched_param(1))
    try:
        yield
    finally:
        os.sched_setscheduler(0, os.SCHED_OTHER, os.sched_param(0))
        time.sleep(0.3)


def measure(forms: Forms, rounds: int, *, realtime: bool) -> dict[str, np.ndarray]:
    """Seconds of each form by round, after one round that warms up."""
    calls: dict[str, Form] = {
        "torch.save": forms.torch_save,
        "torch.save again": forms.torch_save,
        "a step waits": forms.a_step_waits,
        "torch.save + fsync": forms.torch_save_and_fsync,
        "torch.save + fsync again": forms.torch_save_and_fsync,
        "write_checkpoint": forms.write_checkpoint,
        "torch.load": forms.torch_load,
        "verify and load": forms.verify_and_load,
    }
    names = list(calls)
    taken: dict[str, list[float]] = {name: [] for name in COMPARED}
    for number in range(rounds + 1):
        turn = number % len(names)
        for name in names[turn:] + names[:turn]:
            with cores(realtime=realtime and number > 0):
                taken[name].append(calls[name]())
        taken["steps meanwhile"].append(forms.steps_meanwhile())
    return {name: np.array(seconds[1:]) for name, seconds in taken.items()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--folder", type=Path, default=Path(tempfile.gettempdir()), help="on the disk to be measured")
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cpu")
    parser.add_argument("--realtime", action="store_true", help="before all other processes; needs root")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        forms = Forms(Path(folder), device)
        taken = measure(forms, options.rounds, realtime=options.realtime)
    table = ["| form | seconds, median | compared with | ratio, median | 95 % interval |", "|---|---|---|---|---|"]
    for name, other in COMPARED.items():
        if name == other:
            table.append(f"| {name} | {np.median(taken[name]):.3f} | | 1 | |")
            continue
        ratios = taken[name] / taken[other]
        low, high = interval(ratios)
        figures = f"{np.median(taken[name]):.3f} | {other} | {np.median(ratios):.3f} | {low:.3f} to {high:.3f}"
        table.append(f"| {name} | {figures} |")
    before = ", before all other processes" if options.realtime else ""
    facts = f"{facts_of(device)}, {options.rounds} rounds{before}"
    print(facts, *table, sep="\n")
    if options.out is not None:
        size = sum(tensor.nbytes for tensor in forms.tensors) / 1e9
        words = f"{' --device cuda' if device.type == 'cuda' else ''}{' --realtime' if options.realtime else ''}"
        words += f" --out {options.out}"
        head = HEAD.format(options=words, size=size, count=len(forms.tensors))
        options.out.write_text("\n".join([head, facts, "", *table]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
