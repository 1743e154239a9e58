"""The cells of the fault matrix: which fault, where, under which precision, optimizer and number of ranks."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Iterator
from typing import NamedTuple

KINDS = ("nan", "inf", "spike", "fp16_overflow", "norm_overflow")
SITES = ("input", "activation", "loss_term", "gradient", "bn_buffer", "optimizer_moment", "ema")
PRECISIONS = ("fp32", "bf16", "fp16")
OPTIMIZERS = ("adam", "adamw", "sgd")
RANKS = (1, 2)
STATE_SITES = ("bn_buffer", "optimizer_moment", "ema")
"""A fault in the state is not a batch's: the state is what has to be restored."""


class Cell(NamedTuple):
    """One experiment of the matrix."""

    kind: str
    site: str
    precision: str
    optimizer: str
    ranks: int

    def __str__(self) -> str:
        return "-".join(map(str, self))

    @classmethod
    def read(cls, text: str) -> Cell:
        """The cell whose ``str`` this is."""
        kind, site, precision, optimizer, ranks = text.split("-")
        return cls(kind, site, precision, optimizer, int(ranks))


def why_impossible(cell: Cell) -> str | None:
    """Why there is no such fault; None where there is."""
    if cell.site in STATE_SITES and cell.kind not in ("nan", "inf"):
        return "a finite number in the state is not a fault that can be told from a value"
    if cell.kind == "fp16_overflow" and cell.precision != "fp16":
        return "only fp16 overflows at 65504"
    if cell.kind == "fp16_overflow" and cell.site in ("input", "loss_term"):
        return "inputs and losses are fp32"
    if cell.kind == "norm_overflow" and cell.site not in ("gradient", "loss_term"):
        return "only gradients have a norm"
    if cell.kind == "norm_overflow" and cell.precision == "fp16":
        return "a gradient whose square overflows fp32 is inf in fp16 before"
    return None


def all_cells() -> Iterator[Cell]:
    """The full product, without what cannot be."""
    for values in itertools.product(KINDS, SITES, PRECISIONS, OPTIMIZERS, RANKS):
        cell = Cell(*values)
        if why_impossible(cell) is None:
            yield cell


def chosen_cells() -> list[Cell]:
    """About 60 cells: every fault at every site under every precision, and every pair of all five properties.

    Greedy, in a fixed order: each next cell is the first of those that cover most of what is still open,
    optimizers and ranks taking turns.
    """
    remaining = list(all_cells())
    still_open = set().union(*map(_covered_by, remaining))
    chosen: list[Cell] = []
    while still_open:
        used = Counter((cell.optimizer, cell.ranks) for cell in chosen)
        best = max(remaining, key=lambda cell: (len(_covered_by(cell) & still_open), -used[cell.optimizer, cell.ranks]))
        chosen.append(best)
        remaining.remove(best)
        still_open -= _covered_by(best)
    return chosen


def _covered_by(cell: Cell) -> set[tuple[tuple[str, object], ...]]:
    values = tuple(cell._asdict().items())
    return {*itertools.combinations(values, 2), values[:3]}
