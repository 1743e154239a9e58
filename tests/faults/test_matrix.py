"""The chosen cells of the fault matrix; ``python -m tests.torture.fault_matrix`` runs all."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from tests.faults.cells import KINDS, OPTIMIZERS, PRECISIONS, RANKS, SITES, Cell, all_cells, chosen_cells
from tests.faults.creators import expected_creator
from tests.faults.others import HEALTHY, with_grad_scaler
from tests.faults.results import Result, result_of
from tests.faults.run import Trained, expected_end, same, train_cell
from tests.faults.settings import config_of
from tests.faults.two_ranks import train_in_two_ranks
from tests.torture.fault_report import in_time, is_right, write_report

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
    assert in_time(result), "a bad batch in its own step, a sick state at the next health check; the host LAG later"


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


@pytest.mark.parametrize("gate", ["open", "step_only"])
def test_the_matrix_sees_what_a_lesser_gate_leaves(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, gate: str) -> None:
    """Or it would prove nothing."""
    cell = Cell("nan", "input", "fp32", "adam", 1)
    config = config_of(cell)
    stability = config.stability.model_copy(update={"gate": gate, "guards": None})
    monkeypatch.setattr("tests.faults.run.config_of", lambda cell: config.model_copy(update={"stability": stability}))
    result = result_of(cell, tmp_path, [train_cell(cell, tmp_path)])
    assert not result.recovered
    assert not is_right(result)


def test_a_state_that_is_damaged_is_seen() -> None:
    """One bit of one number."""
    ended = expected_end(Cell("nan", "input", "fp32", "adam", 1))
    assert same(ended.network, {name: tensor.clone() for name, tensor in ended.network.items()})
    damaged = {name: tensor.clone() for name, tensor in ended.network.items()}
    weight = damaged["head.weight"].view(-1)
    weight[0] = torch.nextafter(weight[0], torch.tensor(9.0))
    assert not same(ended.network, damaged)


@pytest.mark.parametrize(
    ("cell", "found_by", "state"),
    [
        (Cell(HEALTHY, "", "fp16", "adam", 1), "", "right"),
        (Cell("nan", "gradient", "fp32", "sgd", 1), "found_inf", "weights right"),
        (Cell("nan", "input", "fp32", "adam", 1), "found_inf", "non-finite"),
        (Cell("inf", "optimizer_moment", "fp32", "adam", 1), "", "non-finite"),
    ],
)
def test_the_plain_loop_that_is_compared_with(cell: Cell, found_by: str, state: str) -> None:
    """GradScaler saves the weights from a gradient, not BatchNorm from an input; it does not look at the state."""
    result = with_grad_scaler(cell)
    assert (result.found_by, result.state) == (found_by, state)


def test_the_report_says_what_was_missed(tmp_path: Path) -> None:
    good = Result(CELLS[0], True, "nonfinite_loss", 0, 2, "completed", True, "input item63", True)
    late, missed = replace(good, host_latency=9), replace(good, cell=CELLS[1], detected=False)
    others = {"GradScaler": [with_grad_scaler(Cell("nan", "input", "fp32", "adam", 1))]}
    assert write_report(tmp_path, [good, late, missed], others, seconds=1.0) == [late, missed]
    page = (tmp_path / "report.md").read_text()
    assert "2 of 3 (66.7 %)" in page
    assert "host_latency=9" in page
    assert len((tmp_path / "cells.csv").read_text().splitlines()) == 4
    assert (
        (tmp_path / "others.csv").read_text().splitlines()[1].startswith("GradScaler,nan,input,fp32,adam,1,found_inf,0")
    )
