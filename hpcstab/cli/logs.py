"""``hpcstab logs``: what a run printed."""

from __future__ import annotations

import sys
from typing import Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, Root
from hpcstab.errors import RunError


def logs(
    name: Annotated[str, typer.Argument(metavar="RUN", help="A path, a run id, or any unique part of one.")],
    following: Annotated[bool, typer.Option("--follow", "-f", help="Go on until the run ends.")] = False,
    attempt: Annotated[
        int | None, typer.Option("--attempt", min=1, help="Which attempt. Default: the newest.", show_default=False)
    ] = None,
    rank: Annotated[int, typer.Option("--rank", min=0, help="Of several ranks which; 0 writes the run's files.")] = 0,
    num_lines: Annotated[int, typer.Option("--lines", "-n", min=0, help="So many of the last lines.")] = 40,
    root: Root = DEFAULT_ROOT,
) -> None:
    """What a run printed: the end of its log, or what was caught of a job that died before it had one."""
    from hpcstab.launch.logs import follow, log_file, tail, wait_for_log
    from hpcstab.launch.queue import state_of
    from hpcstab.rundir import find_run

    run = find_run(name, root)
    try:
        path = wait_for_log(run, attempt, rank) if following else log_file(run, attempt, rank)
        if path is None:
            state = state_of(run)
            why = f": {state.detail}" if state.detail else ""
            raise RunError(f"{run.run_id}: printed nothing{' so far' * state.is_open}, it is {state.state}{why}")
        print(f"==> {path}", file=sys.stderr)
        text, end = tail(path, num_lines)
        sys.stdout.write(text)
        for part in follow(run, path, end) if following else ():
            sys.stdout.write(part)
            sys.stdout.flush()
    except KeyboardInterrupt:
        raise typer.Exit from None  # the way to end --follow
