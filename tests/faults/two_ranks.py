"""Cells of two ranks: ``python -m tests.faults.two_ranks RANK ROOT CELL ...`` is one of the two.

One start for all cells, since it costs more than they do.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

import torch
import torch.distributed as dist

from tests.conftest import REPOSITORY
from tests.faults.cells import Cell
from tests.faults.run import Trained, train_cell

TIME_LIMIT_S = 600


def train_in_two_ranks(cells: Sequence[Cell], root: Path) -> dict[Cell, tuple[Trained, Trained]]:
    """What both ranks say of every cell.

    Raises:
        RuntimeError: a rank failed, or said nothing of a cell.
    """
    command = [sys.executable, "-m", "tests.faults.two_ranks"]
    ranks = [
        subprocess.Popen(
            [*command, str(rank), str(root), *map(str, cells)],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            cwd=REPOSITORY,
            env={**os.environ, "WORLD_SIZE": "2", "RANK": str(rank)},
        )
        for rank in range(2)
    ]
    try:
        outputs = [rank.communicate(timeout=TIME_LIMIT_S) for rank in ranks]
    finally:
        for rank in ranks:
            rank.kill()
    for rank, (said, errors) in zip(ranks, outputs, strict=True):
        if rank.returncode or len(said.splitlines()) != len(cells):
            raise RuntimeError(f"a rank ended with {rank.returncode} after {len(said.splitlines())} cells: {errors}")
    both = [[Trained(**json.loads(line)) for line in said.splitlines()] for said, _ in outputs]
    return dict(zip(cells, zip(*both, strict=True), strict=True))


def main(rank: int, root: Path, cells: Sequence[Cell]) -> None:
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{root / 'meeting'}", rank=rank, world_size=2)
    for cell in cells:
        print(json.dumps(asdict(train_cell(cell, root))), flush=True)
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [Cell.read(text) for text in sys.argv[3:]])
