"""What the gate costs a healthy step, printed and never asserted: ``make bench``.

Against a bare PyTorch loop with the same fused optimizer, ``clip_grad_norm_`` and ``.item()`` logging of loss and
norm. All forms of a model run in one process, a step of each in every round and in turning order, so that the noise of
the machine hits all; the ratio is taken within a round. ``bare again`` is a second bare loop: it shows the noise.
``python -m tests.benchmarks.step_cost --out reports/bench/step_cost.md`` writes the table that is committed, and
``--device cuda --out reports/bench/step_cost_gpu.md`` that of a GPU, where a turn is several steps and one wait
at their end: what counts there is how many steps a second come out, and a loop that never waits runs ahead.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import itertools
import os
import platform
import statistics
import tempfile
import time
import warnings
from collections import deque
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from hpcstab.config import load_experiment, parse_overrides, resolve
from hpcstab.execute import load_task, read_config
from hpcstab.identity import create_run
from hpcstab.stability import harden
from hpcstab.stability.batchnorm.running_statistics import RunningStatistics
from hpcstab.stability.gate.gate import LAG, Gate
from hpcstab.training.batches import StepBatch, to_device
from hpcstab.training.context import TrainingContext
from hpcstab.training.objective import Objective
from hpcstab.training.optimizers import Optimizers
from hpcstab.training.step import Pending, StepRunner
from tests.stability.loops import ResNet, Transformer
from tests.training.toy import toy_config

ROUNDS = 200
WARM_UP = 5
SLOW_EVERY = 4
"""Anomaly mode and the naive check run in every fourth round."""
STEPS_A_TURN = {"cpu": 1, "cuda": 10}
HEAD = """# What the gate costs a healthy step

Made by `python -m tests.benchmarks.step_cost {options}`: AdamW (fused) and clipping to norm 1
in every form; `bare` reads loss and norm with `.item()`, ours reads the same figures two steps later. {turn} of each
form in every round, in turning order; the ratio is that of a round, the interval a bootstrap of its median.
`bare again` is the noise: where its interval leaves 1, nothing finer can be read from this table. `naive check` asks
every gradient `isfinite().all()` on its own; `anomaly mode` is torch's `detect_anomaly`; both in every fourth round.

Not measured: several threads or ranks, fp16 and bf16, the files that a run of hpcstab writes.
"""
TURN = {"cpu": "One step", "cuda": "Ten steps with one wait at their end"}
Step = Callable[[], Any]


class Model:
    """What is trained; a task as far as the runner needs one, with a single loss term that the toy's config weighs."""

    loss_term_names: tuple[str, ...] = ("mse",)
    diagnostics = ()

    def __init__(self, network: Callable[[], nn.Module], batch: Any, loss: Callable[[nn.Module, Any], Tensor]) -> None:
        self.network, self.batch, self.loss = network, batch, loss
        self.device = torch.device("cpu")
        self.objective = Objective(toy_config().losses, 1, 1.0)

    def on(self, device: torch.device) -> Model:
        """The same with its batch on a device, and networks that will be made there."""
        self.device, self.batch = device, to_device(self.batch, device)
        return self

    def loss_terms(self, network: nn.Module, batch: Any, context: Any) -> dict[str, Tensor]:
        return {"mse": self.loss(network, batch)}


class Swae3d(Model):
    """The project's own model and loss terms, batches of 16 blocks."""

    def __init__(self) -> None:
        experiment = load_experiment("swae3d")
        resolved = resolve(experiment, "cured", "quick", parse_overrides(["data.batch_size=16"]))
        with tempfile.TemporaryDirectory() as folder:
            model, config = read_config(create_run(Path(folder), experiment, resolved, 0))
        task = load_task(model, config, 0, "bench")
        items = task.dataset("train")
        self.device = torch.device("cpu")
        self.loss_term_names = task.loss_term_names
        self.loss_terms = task.loss_terms  # type: ignore[method-assign]
        self.network = task.network
        self.batch = torch.stack([torch.as_tensor(items[index]) for index in range(16)])
        self.objective = Objective(config.losses, 1, 1.0)

    def loss(self, network: nn.Module, batch: Any) -> Tensor:
        return self.objective.total(self.loss_terms(network, batch, TrainingContext(0, 1, 0, self.device)), 1)


def resnet(batch_size: int = 32) -> Model:
    images, labels = torch.randn(batch_size, 3, 32, 32), torch.randint(10, (batch_size,))
    return Model(
        lambda: ResNet((64, 128, 256, 512), pools=True),
        (images, labels),
        lambda network, batch: F.cross_entropy(network(batch[0]), batch[1]),
    )


def transformer(batch_size: int = 4) -> Model:
    tokens = torch.randint(1000, (batch_size, 65))
    return Model(
        lambda: Transformer(256, 4, 1000, 64, dropout=0.1),
        tokens,
        lambda network, batch: F.cross_entropy(network(batch[:, :-1]).flatten(0, 1), batch[:, 1:].flatten()),
    )


def made(model: Model) -> tuple[nn.Module, torch.optim.Optimizer]:
    torch.manual_seed(0)
    network = model.network().to(model.device)
    return network, torch.optim.AdamW(network.parameters(), lr=1e-4, fused=True)


def bare(model: Model, naive: bool = False, anomaly: bool = False) -> Step:
    network, optimizer = made(model)

    def step() -> None:
        with torch.autograd.detect_anomaly() if anomaly else contextlib.nullcontext():
            loss = model.loss(network, model.batch)
            loss.backward()  # type: ignore[no-untyped-call]
        if naive and not all(bool(p.grad.isfinite().all()) for p in network.parameters() if p.grad is not None):
            return
        norm = nn.utils.clip_grad_norm_(network.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad()
        loss.item()
        norm.item()

    return step


def public(model: Model) -> Step:
    network, optimizer = made(model)
    hardened = harden(network, optimizer, max_grad_norm=1.0)
    loop: Iterator[Any] = hardened.batches(itertools.repeat(model.batch))

    def step() -> None:
        loss = model.loss(network, next(loop))
        loss.backward()  # type: ignore[no-untyped-call]
        hardened.step(loss)
        optimizer.zero_grad()
        _ = hardened.last

    return step


def runner(model: Model) -> Step:
    """The project's own step and its reading two steps later, without the files of a run."""
    network, optimizer = made(model)
    gate = Gate(network, [optimizer], "closed", 1.0)
    task: Any = model
    run = StepRunner(
        task=task,
        network=network,
        optimizer=Optimizers({"network": optimizer}, 1e-4),
        gate=gate,
        objective=model.objective,
        statistics=RunningStatistics(network, "none"),
        precision=toy_config().precision,
        num_micro_batches=1,
        device=model.device,
        seed=0,
    )
    steps, in_flight = itertools.count(), deque[Pending]()

    def step() -> None:
        item = StepBatch(next(steps), 0, (), model.batch)
        in_flight.append(run.launch(item, 1e-4, probes=False, checks=False))
        if len(in_flight) > LAG:
            in_flight.popleft().read()

    return step


def measure(forms: dict[str, Step], rounds: int, device: torch.device) -> dict[str, list[float]]:
    """Seconds of each form's step, by round; NaN in rounds that a slow form leaves out."""
    num_steps = STEPS_A_TURN[device.type]
    times: dict[str, list[float]] = {name: [] for name in forms}
    for round_number in range(-WARM_UP, rounds):
        names = list(forms)
        turn = round_number % len(names)
        for name in names[turn:] + names[:turn]:
            if name in ("anomaly mode", "naive check") and round_number % SLOW_EVERY:
                times[name].append(float("nan"))
                continue
            started = time.perf_counter()
            for _ in range(num_steps):
                forms[name]()
            if device.type == "cuda":
                torch.cuda.synchronize()
            times[name].append((time.perf_counter() - started) / num_steps)
    return {name: taken[WARM_UP:] for name, taken in times.items()}


def interval(ratios: np.ndarray) -> tuple[float, float]:
    """95 % bootstrap interval of the median."""
    generator = np.random.default_rng(0)
    medians = np.median(generator.choice(ratios, (4000, len(ratios))), axis=1)
    low, high = np.quantile(medians, [0.025, 0.975])
    return float(low), float(high)


def rows(name: str, model: Model, rounds: int) -> Iterator[str]:
    forms: dict[str, Step] = {
        "bare": bare(model),
        "bare again": bare(model),
        "harden()": public(model),
        "hpcstab's trainer step": runner(model),
        "anomaly mode": bare(model, anomaly=True),
        "naive check": bare(model, naive=True),
    }
    times = measure(forms, rounds, model.device)
    reference = np.array(times.pop("bare"))
    yield f"| {name} | bare | {statistics.median(reference) * 1e3:.1f} | 1 | | {rounds} |"
    for form, taken in times.items():
        ratios = np.array(taken) / reference
        ratios = ratios[np.isfinite(ratios)]
        low, high = interval(ratios)
        milliseconds = np.nanmedian(taken) * 1e3
        middle = float(np.median(ratios))
        yield f"| {name} | {form} | {milliseconds:.1f} | {middle:.3f} | {low:.3f} to {high:.3f} | {len(ratios)} |"


MODELS: dict[str, Callable[[], Model]] = {
    "ResNet-18, 32x32, batch 32": resnet,
    "transformer, 4 layers, width 256, 4 x 64 tokens": transformer,
    "swae3d, batch 16": Swae3d,
}
GPU_MODELS: dict[str, Callable[[], Model]] = {
    "ResNet-18, 32x32, batch 1024": lambda: resnet(1024),
    "transformer, 4 layers, width 256, 64 x 64 tokens": lambda: transformer(64),
}
"""Sizes that keep a GPU busy; those above are so small that only the launching of kernels counts there."""


def facts_of(device: torch.device) -> str:
    """When, with what and where it was measured."""
    name = torch.cuda.get_device_name() if device.type == "cuda" else torch.backends.cpu.get_cpu_capability()
    load = "/".join(f"{load:.1f}" for load in os.getloadavg())
    where = f"{platform.machine()}, {name}, {torch.get_num_threads()} thread, {device.type.upper()}"
    return f"{datetime.date.today()}, torch {torch.__version__}, {where}, load {load} on {os.cpu_count()} cores"


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, help="write the table here too")
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--device", choices=list(STEPS_A_TURN), default="cpu")
    options = parser.parse_args()
    device = torch.device(options.device)
    torch.set_num_threads(1)
    warnings.filterwarnings("ignore", message="Anomaly Detection")
    facts = facts_of(device)
    table = ["| model | form | ms a step, median | step / bare, median | 95 % interval | rounds |"]
    table.append("|---|---|---|---|---|---|")
    print(facts, *table, sep="\n", flush=True)
    for name, make in (MODELS | GPU_MODELS if device.type == "cuda" else MODELS).items():
        torch.manual_seed(0)
        for row in rows(name, make().on(device), options.rounds):
            print(row, flush=True)
            table.append(row)
    if options.out is not None:
        words = f"{'--device cuda ' if device.type == 'cuda' else ''}--out {options.out}"
        head = HEAD.format(options=words, turn=TURN[device.type])
        options.out.parent.mkdir(parents=True, exist_ok=True)
        options.out.write_text("\n".join([head, facts, "", *table]) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
