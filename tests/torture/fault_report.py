"""The page of the fault matrix."""

from __future__ import annotations

import csv
import datetime
import platform
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import astuple, fields
from pathlib import Path
from typing import Any

import torch

from hpcstab.stability.gate.gate import LAG
from tests.faults.cells import KINDS, OPTIMIZERS, PRECISIONS, RANKS, SITES, STATE_SITES, Cell
from tests.faults.others import OtherResult
from tests.faults.results import Result
from tests.faults.settings import HEALTH_EVERY, NUM_STEPS

_TEMPLATE = Path(__file__).with_name("fault_report.md")


def write_report(
    out: Path, results: Sequence[Result], others: Mapping[str, Sequence[OtherResult]], seconds: float
) -> list[Result]:
    """Write report.md, cells.csv and others.csv; the results that are not as they should be."""
    out.mkdir(parents=True, exist_ok=True)
    missed = [result for result in results if not is_right(result)]
    page = _TEMPLATE.read_text().format(
        summary=_summary(results, others),
        by_fault=_by_fault(results),
        by_other=_by_property(results),
        beside=_beside(results, others),
        how_others=_how_others(others),
        missed="\n".join(f"- {result.cell}: {result}" for result in missed) or "None.",
        environment=f"{datetime.date.today()}, torch {torch.__version__}, {platform.machine()}, one thread a rank, CPU,"
        f" {seconds:.0f} s on a shared machine",
        num_steps=NUM_STEPS,
        health_every=HEALTH_EVERY,
        lag=LAG,
    )
    (out / "report.md").write_text(page)
    _write_csv(out / "cells.csv", Result, results)
    _write_csv(out / "others.csv", OtherResult, [each for name in others for each in others[name]], others)
    return missed


def is_right(result: Result) -> bool:
    """All that the matrix asks for."""
    return (
        result.detected
        and result.recovered
        and result.ended == "completed"
        and result.creator_is_right
        and in_time(result)
    )


def in_time(result: Result) -> bool:
    """A bad batch in its own step, a sick state by the next health check; the host ``LAG`` later at most."""
    return _is_allowed(result.cell, result.device_latency, result.host_latency)


def _is_allowed(cell: Cell, device: int | None, host: int | None) -> bool:
    allowed = HEALTH_EVERY - 1 if cell.site in STATE_SITES else 0
    return device is not None and host is not None and device <= allowed and host <= allowed + LAG


def _summary(results: Sequence[Result], others: Mapping[str, Sequence[OtherResult]]) -> str:
    rows = [
        ["detected", _share(results, lambda result: result.detected)],
        ["in time", _share(results, in_time)],
        ["state afterwards right", _share(results, lambda result: result.recovered)],
        ["its weights, if nothing else", _share(results, lambda result: result.recovered)],
        ["creator named right", _share(results, lambda result: result.creator_is_right)],
    ]
    for theirs in others.values():
        of_theirs = [*(_share(theirs, is_so) for is_so in _OTHERS.values()), "not asked"]
        for row, share in zip(rows, of_theirs, strict=True):
            row.append(share)
    names = [f"hpcstab, {len(results)} cells", *(f"{name}, {len(others[name])} cells of one rank" for name in others)]
    return _table(["", *names], rows)


_OTHERS: dict[str, Callable[[OtherResult], bool]] = {
    "detected": lambda result: bool(result.found_by),
    "in time": lambda result: _is_allowed(result.cell, 0, result.host_latency),
    "right": lambda result: result.state == "right",
    "weights right": lambda result: result.state in ("right", "weights right"),
}


def _by_fault(results: Sequence[Result]) -> str:
    rows = []
    for kind, site in _faults(results):
        of_fault = [result for result in results if result.cell[:2] == (kind, site)]
        rows.append(
            [
                kind,
                site,
                str(len(of_fault)),
                _count(of_fault, lambda result: result.detected),
                _count(of_fault, lambda result: result.recovered),
                _range(result.device_latency for result in of_fault),
                _range(result.host_latency for result in of_fault),
                _count(of_fault, lambda result: result.creator_is_right),
                ", ".join(dict.fromkeys(result.told for result in of_fault)),
                "; ".join(dict.fromkeys(f"`{result.creator}`" for result in of_fault)),
            ]
        )
    header = ["fault", "site", "cells", "detected", "bitwise", "device", "host", "creator", "told as", "named"]
    return _table(header, rows)


def _by_property(results: Sequence[Result]) -> str:
    rows = []
    for position, values in ((2, PRECISIONS), (3, OPTIMIZERS), (4, RANKS)):
        for value in values:
            some = [result for result in results if result.cell[position] == value]
            rows.append(
                [
                    f"{Cell._fields[position]} {value}",
                    str(len(some)),
                    _count(some, lambda result: result.detected),
                    _count(some, lambda result: result.recovered),
                    _count(some, lambda result: result.creator_is_right),
                ]
            )
    return _table(["", "cells", "detected", "bitwise", "creator"], rows)


def _beside(results: Sequence[Result], others: Mapping[str, Sequence[OtherResult]]) -> str:
    alone = [result for result in results if result.cell.ranks == 1]
    rows = []
    for kind, site in _faults(alone):
        mine = [result for result in alone if result.cell[:2] == (kind, site)]
        row = [kind, site, str(len(mine)), _count(mine, lambda result: result.detected and result.recovered)]
        for name in others:
            theirs = [result for result in others[name] if result.cell[:2] == (kind, site)]
            row += [
                _count(theirs, _OTHERS["detected"]),
                _range(result.host_latency for result in theirs),
                ", ".join(f"{state} {count}" for state, count in _states(theirs)),
            ]
        rows.append(row)
    columns = [f"{name.split()[0]} {what}" for name in others for what in ("found", "host", "state")]
    return _table(["fault", "site", "cells", "ours: found, right", *columns], rows)


def _states(results: Sequence[OtherResult]) -> list[tuple[str, int]]:
    states = ("right", "weights right", "another", "non-finite")
    counts = [(state, sum(result.state == state for result in results)) for state in states]
    return [(state, count) for state, count in counts if count]


def _how_others(others: Mapping[str, Sequence[OtherResult]]) -> str:
    rows = []
    for name, results in others.items():
        for check in dict.fromkeys(result.found_by for result in results):
            some = [result for result in results if result.found_by == check]
            ended = _count(some, lambda result: result.last_step < NUM_STEPS - 1)
            states = ", ".join(f"{state} {count}" for state, count in _states(some))
            rows.append([name, check or "(not detected)", str(len(some)), ended, states])
    return _table(["", "found by", "cells", "training ended by it", "state"], rows)


def _faults(results: Sequence[Result]) -> list[tuple[str, str]]:
    present = {result.cell[:2] for result in results}
    return [(kind, site) for kind in KINDS for site in SITES if (kind, site) in present]


def _share(results: Sequence[Any], is_so: Callable[[Any], bool]) -> str:
    count = sum(map(is_so, results))
    return f"{count} of {len(results)} ({100 * count / len(results):.1f} %)"


def _count(results: Sequence[Any], is_so: Callable[[Any], bool]) -> str:
    return f"{sum(map(is_so, results))}/{len(results)}"


def _range(values: Iterable[int | None]) -> str:
    known = sorted({value for value in values if value is not None})
    if not known:
        return "never"
    return str(known[0]) if len(known) == 1 else f"{known[0]} to {known[-1]}"


def _table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def _write_csv(
    path: Path, kind: Any, results: Sequence[Any], others: Mapping[str, Sequence[Any]] | None = None
) -> None:
    """One row a result; of others the program first."""
    programs = [name for name in others or () for _ in (others or {})[name]]
    names = [field.name for field in fields(kind)[1:]]
    with path.open("w", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow([*(["program"] if others else []), *Cell._fields, *names])
        for index, result in enumerate(results):
            first = [programs[index]] if programs else []
            writer.writerow([*first, *result.cell, *astuple(result)[1:]])
