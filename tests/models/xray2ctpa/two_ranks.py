"""One rank of a training of two: ``python -m tests.models.xray2ctpa.two_ranks RANK MEETING ROOT``.

Prints one JSON line: the losses of its steps and a digest of what it ended with.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist

from hpcstab.execute import load_task
from hpcstab.metrics import read_history
from hpcstab.rundir import RunDir, write_json
from hpcstab.training.build import build_trainer
from tests.models.xray2ctpa.making import make_config
from tests.two_processes import one_of_two

COMPARE = {"primary": "psnr", "margin": 0.5, "horizon_steps": 6, "hierarchy": ["finite"]}
SETTINGS = ("precision.dtype=fp32", "losses.phases={}")  # fp32: bf16 rounds sums of other sizes otherwise


def train(folder: Path, variant: str, rank: int = 0) -> dict[str, Any]:
    """Losses, and sums of the parameters by name, of a training in all ranks that there are."""
    run = RunDir(folder / "xray2ctpa" / variant / "20260101_000000_s0_00000000")
    if rank == 0:
        (run.path / "attempts").mkdir(parents=True)
        write_json(run.run_json, {"run_id": "two", "seed": 0, "compare": COMPARE, "failure": []})
        write_json(run.attempt_json(1), {"attempt": 1})
    if dist.is_initialized():
        dist.barrier()
    config = make_config(variant, "tiny", *SETTINGS)
    trainer = build_trainer(load_task("xray2ctpa", config, 0, "test"), config, run, 0, 1, "psnr")
    state = trainer.train().state
    trainer.records.close()
    if dist.is_initialized():
        dist.barrier()
    return {
        "state": state,
        "losses": [float(row["loss"]) for row in read_history(run.metrics_csv).values()],
        "parameters": {
            name: [float(value.detach().double().sum()), float(value.detach().double().norm())]
            for name, value in trainer.network.named_parameters()
        },
    }


def main(rank: int, meeting: str, root: Path) -> None:
    torch.set_num_threads(1)
    with one_of_two(rank, meeting):
        for variant in ("cured", "phased"):
            print(json.dumps({"variant": variant, **train(root, variant, rank)}), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2], Path(sys.argv[3]))
