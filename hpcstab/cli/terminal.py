"""Tables on a terminal: rich where there is one, tab-separated lines where output is piped."""

from __future__ import annotations

import json
import sys
from collections.abc import Collection, Iterable, Sequence
from typing import Any

_MIN_FOLDED = 6


def print_table(
    columns: Sequence[str], rows: Iterable[Sequence[Any]], title: str = "", folding: Collection[str] | None = None
) -> None:
    """A table; empty cells stand for None. ``folding``: the columns that may take several lines a row; None: all."""
    cells = [["" if cell is None else str(cell) for cell in row] for row in rows]
    if not sys.stdout.isatty():
        for line in [list(columns), *cells]:
            print("\t".join(" ".join(cell.split()) for cell in line))
        return
    from rich import box
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, pad_edge=False)
    for column in columns:
        folds = folding is None or column in folding
        table.add_column(column, overflow="fold", no_wrap=not folds, min_width=_MIN_FOLDED if folds else None)
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    Console().print(table)


def print_json(value: Any) -> None:
    """JSON for programs; non-finite numbers are written as null."""
    print(json.dumps(_jsonable(value), indent=1, allow_nan=False))


def _jsonable(value: Any) -> Any:
    if isinstance(value, float):
        return value if value - value == 0 else None
    if isinstance(value, dict):
        return {str(key): _jsonable(entry) for key, entry in value.items()}
    if isinstance(value, (list, tuple)):
        return [_jsonable(entry) for entry in value]
    return value if isinstance(value, (str, int, bool, type(None))) else str(value)
