"""Every cell of the fault matrix, and the same faults elsewhere; writes the table of ``reports/fault-matrix``.

    python -m tests.torture.fault_matrix [--out reports/fault-matrix]

Exits with 1 where a fault was missed, came late, left something behind, or was blamed on another. Lightning is compared
where it is installed (``pip install hpcstab[torture]``).
"""

from __future__ import annotations

import argparse
import importlib.util
import itertools
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from hpcstab.errors import RunError
from tests.faults.cells import OPTIMIZERS, PRECISIONS, Cell, all_cells
from tests.faults.others import HEALTHY, OtherResult, with_grad_scaler
from tests.faults.results import Result, result_of
from tests.faults.run import train_cell
from tests.faults.two_ranks import train_in_two_ranks
from tests.torture.fault_report import write_report

Others = dict[str, list[OtherResult]]


def ours(root: Path) -> list[Result]:
    """All cells, by this trainer."""
    cells = list(all_cells())
    of_two = train_in_two_ranks([cell for cell in cells if cell.ranks == 2], root)
    return [result_of(cell, root, of_two[cell] if cell.ranks == 2 else (train_cell(cell, root),)) for cell in cells]


def others(root: Path) -> Others:
    """The cells of one rank, by other trainings; those that can be imported."""
    programs: dict[str, Callable[[Cell], OtherResult]] = {}
    if importlib.util.find_spec("lightning"):
        from lightning import __version__ as version

        from tests.faults.with_lightning import with_lightning

        programs[f"Lightning {version}"] = lambda cell: with_lightning(cell, root)
    else:
        print("lightning is not installed: not compared; pip install 'hpcstab[torture]' gives it")
    programs["GradScaler"] = with_grad_scaler
    return {name: _all_of_one_rank(name, program) for name, program in programs.items()}


def _all_of_one_rank(name: str, program: Callable[[Cell], OtherResult]) -> list[OtherResult]:
    """Without a fault it has to be the same training, or nothing could be compared."""
    for precision, optimizer in itertools.product(PRECISIONS, OPTIMIZERS):
        healthy = program(Cell(HEALTHY, "", precision, optimizer, 1))
        if healthy.state != "right" or healthy.found_by:
            raise RunError(f"{name} trains otherwise without any fault: {healthy}")
    return [program(cell) for cell in all_cells() if cell.ranks == 1]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--out", type=Path, default=Path("reports/fault-matrix"))
    out = parser.parse_args().out
    torch.set_num_threads(1)
    began = time.perf_counter()
    with tempfile.TemporaryDirectory() as folder:
        results, compared = ours(Path(folder)), others(Path(folder))
    missed = write_report(out, results, compared, seconds=time.perf_counter() - began)
    print(f"{out / 'report.md'}: {len(results)} cells, {len(missed)} of them not as they should be")
    for result in missed:
        print(f"- {result}")
    raise SystemExit(1 if missed else 0)


if __name__ == "__main__":
    main()
