"""One rank of two trainings that belong together: ``python -m tests.training.two_ranks RANK MEETING ROOT``.

Prints one JSON line a case: how it ended, and whether the state is bitwise that of the plain loop.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpcstab.rundir import RunDir, write_json
from hpcstab.training import Trainer
from hpcstab.training.build import build_trainer
from tests.faults.reference import train_plainly
from tests.faults.task import FaultTask
from tests.training.toy import Config, toy_config
from tests.two_processes import one_of_two

STEP = 9
COMPARE = {"primary": "error", "margin": 0.01, "horizon_steps": 20, "hierarchy": ["finite"]}


@dataclass(frozen=True)
class Case:
    """A fault on one rank; ``stop_on``: the rank that is asked to stop before step 6, after which both go on.

    ``dies_at``: both ranks die in this step, and go on from the last checkpoint of the cadence.
    """

    name: str
    kind: str = "none"
    site: str = "none"
    rank: int = 1
    precision: str = "fp32"
    optimizer: str = "adam"
    stop_on: int | None = None
    dies_at: int | None = None
    poisons_buffer_of: int | None = None
    loses_batch: bool = True


CASES = (
    Case("no fault", loses_batch=False),
    Case("micro-batches of a sgd", optimizer="sgd", loses_batch=False),
    Case("input of rank 1", "nan", "input"),
    Case("input of rank 0", "inf", "input", rank=0),
    Case("gradient of rank 1", "nan", "gradient", optimizer="sgd"),
    Case("fp16 activation of rank 1", "inf", "activation", precision="fp16"),
    Case("statistics of rank 0", rank=0, poisons_buffer_of=0, loses_batch=False),
    Case("statistics of rank 1", poisons_buffer_of=1, loses_batch=False),
    Case("rank 1 is asked to stop", "nan", "input", stop_on=1),
    Case("both die", "nan", "input", dies_at=13),
)


def config_of(case: Case) -> Config:
    scale = {"initial": 1024.0, "growth_every": 10_000} if case.precision == "fp16" else None
    return toy_config(
        trainer={"max_steps": 15, "ema_decay": 0.9, "checkpoint_every": {"steps": 5}, "evaluate_every": {"steps": 5}},
        losses={"weights": {"mse": 1.0, "size": 0.1}},
        optimizer={"name": case.optimizer, "momentum": 0.9},
        precision={"dtype": case.precision, "loss_scale": scale},
        stability={"gate": "closed", "guards": "default", "health_every": {"steps": 4}},
    )


def main(rank: int, meeting: str, root: Path) -> None:
    with one_of_two(rank, meeting):
        for number, case in enumerate(CASES):
            print(json.dumps({"case": case.name, **run_case(case, rank, root / f"run{number}")}), flush=True)


def run_case(case: Case, rank: int, folder: Path) -> dict[str, Any]:
    config = config_of(case)
    run = RunDir(folder / "toy" / "before" / "20260101_000000_s0_00000000")
    if rank == 0:
        run.path.mkdir(parents=True)
        write_json(run.run_json, {"run_id": "toy", "seed": 0, "compare": COMPARE, "failure": []})
    dist.barrier()
    trainer, states = _train(case, config, run, rank)
    reference = train_plainly(config, 2, without=STEP if case.loses_batch else None)
    return {
        "states": states,
        "network": _same(dict(trainer.network.named_parameters()), reference.network)
        and (rank != 0 or _same(dict(trainer.network.named_buffers()), reference.network)),
        "optimizer": all(
            _same(values, reference.optimizer[key]) for key, values in trainer.optimizer.state_dict()["state"].items()
        ),
        "average": all(
            torch.equal(ours, theirs)
            for (_, ours), theirs in zip(
                trainer.runner.gate.ema.tensors() if trainer.runner.gate.ema else (), reference.average, strict=True
            )
        ),
    }


def _train(case: Case, config: Config, run: RunDir, rank: int) -> tuple[Trainer, list[str]]:
    states: list[str] = []
    attempt = 0
    while not states or states[-1] in ("stopped", "died"):
        attempt += 1
        if rank == 0:
            run.attempts.mkdir(exist_ok=True)
            write_json(run.attempt_json(attempt), {"attempt": attempt})
        dist.barrier()
        task = FaultTask(config, case.kind, case.site, STEP if rank == case.rank else -1, bad_sample=2 + case.rank)
        asked = _asked_at(6) if case.stop_on == rank and attempt == 1 else lambda: None
        trainer = build_trainer(task, config, run, 0, attempt, "error", (), asked)
        if case.dies_at is not None and attempt == 1:
            _die_at(trainer, case.dies_at)
        if case.poisons_buffer_of == rank:
            _poison_once(trainer)
        try:
            states.append(trainer.train().state)
        except KeyboardInterrupt:
            states.append("died")
        trainer.records.close()
    return trainer, states


def _asked_at(look: int) -> Callable[[], str | None]:
    """Asked to stop from the look with that number on."""
    looks: list[None] = []

    def asked() -> str | None:
        looks.append(None)
        return "SIGTERM" if len(looks) > look else None

    return asked


def _die_at(trainer: Trainer, step: int) -> None:
    launch = trainer.runner.launch

    def dying(item: Any, *args: Any, **kwargs: Any) -> Any:
        if item.step == step:
            raise KeyboardInterrupt
        return launch(item, *args, **kwargs)

    trainer.runner.launch = dying  # type: ignore[method-assign]


def _poison_once(trainer: Trainer) -> None:
    """A NaN in the running mean, between two steps."""
    launch, done = trainer.runner.launch, []

    def poisoned(item: Any, *args: Any, **kwargs: Any) -> Any:
        if item.step == STEP and not done:
            done.append(True)
            trainer.network.norm.running_mean[2] = float("nan")  # type: ignore[union-attr,index,operator]
        return launch(item, *args, **kwargs)

    trainer.runner.launch = poisoned  # type: ignore[method-assign]


def _same(ours: dict[str, Any], theirs: dict[str, Any]) -> bool:
    return all(torch.equal(value, theirs[name]) for name, value in ours.items())


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
