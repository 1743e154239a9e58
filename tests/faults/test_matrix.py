"""The chosen cells of the fault matrix; ``python -m tests.torture.fault_matrix`` runs all."""

from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from hpcstab.stability.gate import LAG
from tests.faults.cells import KINDS, OPTIMIZERS, PRECISIONS, RANKS, SITES, STATE_SITES, Cell, all_cells, chosen_cells
from tests.faults.creators import expected_creator
from tests.faults.results import Result, result_of
from tests.faults.run import Trained, train_cell
from tests.faults.settings import HEALTH_EVERY
from tests.faults.two_ranks import train_in_two_ranks

CELLS = chosen_cells()


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("matrix")


@pytest.fixture(scope="module")
def of_two_ranks(root: Path) -> dict[Cell, tuple[Trained, Trained]]:
    return train_in_two_ranks([cell for cell in CELLS if cell.ranks == 2], root)


@pytest.mark.parametrize("cell", CELLS, ids=str)
def test_a_fault_is_found_named_and_leaves_nothing(cell: Cell, root: Path, request: pytest.FixtureRequest) -> None:
    if cell.ranks == 2:
        trained = request.getfixturevalue("of_two_ranks")[cell]
    else:
        trained = (train_cell(cell, root),)
    result = result_of(cell, root, trained)
    assert (result.ended, result.detected, result.recovered) == ("completed", True, True), result
    assert result.creator == str(expected_creator(cell))
    assert result.creator_is_right
    assert_in_time(result)


def assert_in_time(result: Result) -> None:
    """A bad batch is refused in its own step and read ``LAG`` later; a sick state at the next health check."""
    allowed = HEALTH_EVERY - 1 if result.cell.site in STATE_SITES else 0
    assert result.device_latency is not None
    assert result.device_latency <= allowed
    assert result.host_latency is not None
    assert result.host_latency <= allowed + LAG


def test_the_chosen_cells_cover_all_pairs() -> None:
    """Every pair of values that is possible, and every fault at every site under every precision."""
    for first, second in itertools.combinations(range(len(Cell._fields)), 2):
        possible = {(cell[first], cell[second]) for cell in all_cells()}
        assert {(cell[first], cell[second]) for cell in CELLS} == possible
    assert {cell[:3] for cell in CELLS} == {cell[:3] for cell in all_cells()}
    assert 55 <= len(CELLS) <= 70
    assert len(set(CELLS)) == len(CELLS)
    assert chosen_cells() == CELLS, "the choice is the same every time"


def test_the_product_leaves_out_only_what_cannot_be() -> None:
    cells = list(all_cells())
    assert len(cells) == len(set(cells)) == 360
    for position, values in enumerate((KINDS, SITES, PRECISIONS, OPTIMIZERS, RANKS)):
        assert {cell[position] for cell in cells} == set(values)
    assert {cell.precision for cell in cells if cell.kind == "fp16_overflow"} == {"fp16"}


def test_a_cell_is_read_back_from_its_name() -> None:
    assert all(Cell.read(str(cell)) == cell for cell in all_cells())
