"""Cells of two ranks: ``python -m tests.faults.two_ranks RANK ROOT CELL ...`` is one of the two.

One start for all cells, since it costs more than they do.
"""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path

from tests.faults.cells import Cell
from tests.faults.run import Trained, train_cell
from tests.two_processes import lines_of_two, one_of_two

TIME_LIMIT_S = 600


def train_in_two_ranks(cells: Sequence[Cell], root: Path) -> dict[Cell, tuple[Trained, Trained]]:
    """What both ranks say of every cell.

    Raises:
        RuntimeError: a rank failed.
        ValueError: it said nothing of a cell.
    """
    lines = lines_of_two("tests.faults.two_ranks", root, *map(str, cells), patience_s=TIME_LIMIT_S)
    both = [[Trained(**line) for line in said] for said in lines]
    return dict(zip(cells, zip(*both, strict=True), strict=True))


def main(rank: int, root: Path, cells: Sequence[Cell]) -> None:
    with one_of_two(rank, str(root / "meeting")):
        for cell in cells:
            print(json.dumps(asdict(train_cell(cell, root))), flush=True)


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[2]), [Cell.read(text) for text in sys.argv[3:]])
