"""``hpcstab status``: what every run is doing, who says so, and how long ago."""

from __future__ import annotations

import math
import socket
import sys
import time
from collections import Counter
from collections.abc import Callable, Sequence
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, TextIO

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import ConfigError, RunError
from hpcstab.units import duration

if TYPE_CHECKING:
    from rich.table import Table

    from hpcstab.launch.queue import RunState

COLUMNS = ("run", "state", "step", "loss", "grad norm", "metric", "to go", "attempt", "GPU h", "node", "seen", "detail")
_POLL_S = 0.5
_LINE_EVERY_S = 10.0


def status(
    campaign: Annotated[str | None, typer.Argument(metavar="[CAMPAIGN]", help="Only this campaign.")] = None,
    watch: Annotated[
        float | None, typer.Option("--watch", min=0.2, metavar="SECONDS", help="Again every so many seconds.")
    ] = None,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """What every run is doing: its state, who says so and how long ago, and its last figures.

    GPU h: GPU-hours, over all attempts of a run the GPUs it was given times the hours it had them, used or not.
    """
    if watch is not None and as_json:
        raise ConfigError("--watch and --json exclude each other")
    if watch is not None:
        _watch(campaign, root, watch)
        return
    states, problems = _read(campaign, root)
    if as_json:
        print_json([state.as_json() for state in states])
    else:
        print_states(states, root)
    if problems:
        more = f" (and {len(problems) - 1} more)" if len(problems) > 1 else ""
        raise RunError(problems[0] + more)


def print_states(states: Sequence[RunState], root: Path) -> None:
    """The table and one line that sums it up."""
    if not states:
        print(f"no runs under '{root}'; `hpcstab submit MODEL` makes some")
    elif sys.stdout.isatty():
        from rich.console import Console

        Console().print(table_of(states, _shortest_name(states)))
    else:
        print_table(COLUMNS, [cells(state, state.run_id) for state in states])
        print(summary(states))


def cells(state: RunState, name: str) -> tuple[str, ...]:
    """A run as a row of the table; ``name`` is its first cell."""
    return (
        name,
        state.state,
        _step(state),
        _figure(state.loss),
        _figure(state.grad_norm),
        _metric(state),
        "" if state.eta_s is None else duration(state.eta_s),
        "" if state.attempt is None else str(state.attempt),
        "" if state.gpu_hours is None else hours(state.gpu_hours),
        state.node or "",
        f"{duration(state.age_s)} ago, {state.source}",
        state.detail or "",
    )


def one_line(state: RunState) -> str:
    """A run for a log: ``before s0  running 120/400  loss 0.31  psnr 12.3 dB  40 s to go``."""
    parts = [
        short_name(state),
        " ".join(part for part in (state.state, _step(state)) if part),
        f"loss {_figure(state.loss)}" if state.loss is not None else "",
        _metric(state),
        f"{duration(state.eta_s)} to go" if state.eta_s is not None else "",
        state.detail or "",
    ]
    return "  ".join(part for part in parts if part)


def short_name(state: RunState) -> str:
    """The run within its campaign: ``before s0``."""
    return f"{state.variant} s{state.seed}"


def _shortest_name(states: Sequence[RunState]) -> Callable[[RunState], str]:
    """Run ids, without their model where all have the same: a part that is unique is enough for every verb."""
    if len({state.model for state in states}) == 1:
        return lambda state: state.run_id.partition("/")[2]
    return lambda state: state.run_id


def summary(states: Sequence[RunState]) -> str:
    """``9 runs: 2 running, 4 queued, 3 completed; 12.5 GPU-hours``."""
    counts = Counter(state.state for state in states)
    text = f"{num_runs(len(states))}: " + ", ".join(f"{count} {name}" for name, count in counts.items())
    used = [state.gpu_hours for state in states if state.gpu_hours is not None]
    return f"{text}; {hours(sum(used))} GPU-hours" if used else text


def num_runs(count: int) -> str:
    """``1 run``, ``9 runs``."""
    return f"{count} run" if count == 1 else f"{count} runs"


def hours(count: float) -> str:
    """``<0.01``, ``0.25``, ``12.5`` or ``340``."""
    if count < 0.01:
        return "<0.01" if count > 0 else "0"
    return f"{count:.2f}" if count < 10 else f"{count:.1f}" if count < 100 else f"{count:.0f}"


def table_of(states: Sequence[RunState], name: Callable[[RunState], str], without: Sequence[str] = ()) -> Table:
    """The table for a terminal, without the columns that tell nothing: it has to fit."""
    from rich import box
    from rich.table import Table
    from rich.text import Text

    rows = [cells(state, name(state)) for state in states]
    dull = {"attempt": {"", "1"}, "GPU h": {"", hours(0), hours(0.001)}, "node": {"", socket.gethostname()}}
    shown = [
        index
        for index, column in enumerate(COLUMNS)
        if column not in without and any(row[index] not in dull.get(column, {""}) for row in rows)
    ]
    table = Table(box=box.SIMPLE_HEAD, pad_edge=False, caption=summary(states), caption_justify="left")
    for index in shown:
        table.add_column(COLUMNS[index], overflow="fold", no_wrap=COLUMNS[index] not in ("run", "detail"))
    for row in rows:
        table.add_row(*(Text(row[index]) for index in shown))
    return table


def follow_campaign(root: Path, campaign: str, stream: TextIO, patience_s: float = math.inf) -> list[RunState]:
    """Show the progress of a campaign until all its runs have ended, or the patience has.

    One table drawn again and again on a terminal, else a line for each change.
    """
    from rich.console import Console
    from rich.live import Live

    deadline = time.monotonic() + patience_s
    lines = _ChangeLines(stream)
    with Live(console=Console(file=stream), auto_refresh=False) if stream.isatty() else nullcontext() as live:
        while True:
            states, _ = _read(campaign, root)
            if live is not None:
                live.update(table_of(states, short_name, without=("seen",)), refresh=True)
            else:
                lines.show(states)
            if not any(state.is_open for state in states) or time.monotonic() > deadline:
                return states
            time.sleep(_POLL_S)


class _ChangeLines:
    """Prints a run where its state or its last evaluation changed, and else its step every some seconds."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._shown: dict[str, tuple[RunState, float]] = {}

    def show(self, states: Sequence[RunState]) -> None:
        now = time.monotonic()
        for state in states:
            before, at = self._shown.get(state.run_id, (None, -math.inf))
            stepped = before is not None and before.step != state.step and now - at >= _LINE_EVERY_S
            if before is None or stepped or _news(before) != _news(state):
                self._shown[state.run_id] = state, now
                print(one_line(state), file=self._stream, flush=True)


def _news(state: RunState) -> tuple[str, str]:
    """What is worth a line; the metric as text, since nan is not equal to itself."""
    return state.state, _metric(state)


def _read(campaign: str | None, root: Path) -> tuple[list[RunState], list[str]]:
    """The rows, and what could not be read."""
    from hpcstab.launch.queue import run_states
    from hpcstab.state.ledger import read_ledgers

    states = run_states(root, campaign)
    unreadable = [] if campaign else read_ledgers(root)[1]
    return states, [*unreadable, *(state.problem for state in states if state.problem)]


def _watch(campaign: str | None, root: Path, seconds: float) -> None:
    from rich.live import Live

    try:
        if not sys.stdout.isatty():
            while True:
                print_states(_read(campaign, root)[0], root)
                time.sleep(seconds)
        with Live(auto_refresh=False) as live:
            while True:
                states = _read(campaign, root)[0]
                live.update(table_of(states, _shortest_name(states)), refresh=True)
                time.sleep(seconds)
    except KeyboardInterrupt:
        raise typer.Exit from None  # the way to end it


def _step(state: RunState) -> str:
    if state.step is None:
        return ""
    return f"{state.step}/{state.total_steps}" if state.total_steps is not None else str(state.step)


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3g}"


def _metric(state: RunState) -> str:
    if state.metric is None or state.value is None:
        return ""
    if state.unit in (None, "", "1"):
        return f"{state.metric} {state.value:.3g}"
    return f"{state.metric} {state.value:.1f} {state.unit}"
