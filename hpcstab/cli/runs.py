"""``hpcstab runs``: what every run takes on disk and how healthy it is; with ``--prune`` what is named is removed."""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import EXIT_BAD_NEWS, ConfigError, RunError
from hpcstab.units import size

if TYPE_CHECKING:
    from hpcstab.housekeeping.listing import RunSize
    from hpcstab.housekeeping.prune import Plan, Prunable

_COLUMNS = ("run", "state", "judged", "healthy", "checkpoints", "capsules", "total")


def runs(
    names: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL|RUN]...", help="Parts of run ids; with --prune each names one run."),
    ] = None,
    parts: Annotated[
        list[str] | None,
        typer.Option(
            "--prune",
            metavar="PART",
            help="Remove this from the named runs: checkpoints (all but the newest healthy one and the best), capsules,"
            " fixed, asides, or submissions (submitit's files of campaigns that have ended). May be repeated.",
            show_default=False,
        ),
    ] = None,
    all_runs: Annotated[
        bool, typer.Option("--all", help="With --prune: from all runs, or all that NAMES match.")
    ] = False,
    yes: Annotated[bool, typer.Option("--yes", help="With --prune: do not ask.")] = False,
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Size and health of every run; --prune removes what is named, never the last healthy checkpoint.

    judged: stable, or what it was not first (finite, learned, unmasked). healthy: the step of its newest checkpoint
    that was labelled healthy when it was saved; before --prune counts on one, its bytes are verified.
    """
    from hpcstab.housekeeping.listing import sizes_under
    from hpcstab.launch.answers import scheduler_answers

    scheduler_answers(root)
    if parts:
        from hpcstab.housekeeping.prune import parse_parts

        wanted = parse_parts(parts)
        _prune(root, _named(names or [], root, all_runs), wanted, yes=yes, as_json=as_json)
        return
    if all_runs or yes:
        raise ConfigError("--all and --yes belong to --prune PART")
    rows = sizes_under(root, names or [])
    if as_json:
        print_json([row.as_json() for row in rows])
    else:
        _print_sizes(rows, root)


def _named(names: Sequence[str], root: Path, all_runs: bool) -> list[RunSize]:
    """Exactly the runs that are meant: a part that fits several is refused, unless all of them are asked for."""
    from hpcstab.housekeeping.listing import sizes_under
    from hpcstab.rundir import find_run

    if all_runs:
        return sizes_under(root, names)
    if not names:
        raise ConfigError("--prune wants the runs by name, or --all")
    wanted = {find_run(name, root).path.resolve() for name in names}
    rows = [row for row in sizes_under(root) if row.run.path.resolve() in wanted]
    if len(rows) != len(wanted):
        raise ConfigError(f"--prune works on the runs under --root '{root}'; not all of the named are there")
    return rows


def _print_sizes(rows: Sequence[RunSize], root: Path) -> None:
    from hpcstab.housekeeping.listing import totals
    from hpcstab.housekeeping.sizes import PARTS

    if not rows:
        print(f"no runs under '{root}'; `hpcstab submit MODEL` makes some")
        return
    total = totals(rows)
    several = len({row.run.path.parts[-3] for row in rows}) > 1
    table = [
        (
            row.run.run_id if several else row.run.run_id.partition("/")[2],
            row.state,
            row.judged,
            "none" if row.healthy_step is None else str(row.healthy_step),
            size(row.sizes["checkpoints"] + row.sizes["fixed"]),
            size(row.sizes["capsules"]),
            size(row.total),
        )
        for row in rows
    ]
    print_table(_COLUMNS, table, folding=("run",))
    by_part = ", ".join(f"{part} {size(total[part])}" for part in PARTS if total[part])
    print(f"{len(rows)} run{'s' if len(rows) > 1 else ''}, {size(sum(total.values()))}: {by_part}")


def _prune(root: Path, rows: Sequence[RunSize], parts: Sequence[Prunable], *, yes: bool, as_json: bool) -> None:
    from hpcstab.housekeeping.prune import plan_pruning, prune

    plan = plan_pruning(root, rows, parts)
    if not as_json:
        _print_plan(plan)
    if plan.removals and not yes:
        if not sys.stdin.isatty():
            raise RunError("--prune asks before it removes, and nobody is there to answer; say --yes")
        typer.confirm(f"remove {len(plan.removals)} of {size(plan.num_bytes)}?", abort=True)
    outcomes = list(prune(root, plan))
    removed = sum(removal.num_bytes for removal, problem in outcomes if problem is None)
    if as_json:
        print_json(
            {
                "removed": [_as_json(removal) for removal, problem in outcomes if problem is None],
                "left": [{**_as_json(removal), "reason": problem} for removal, problem in outcomes if problem],
                "kept": [{"owner": owner, "reason": reason} for owner, reason in plan.kept],
                "num_bytes": removed,
            }
        )
    else:
        for removal, problem in outcomes:
            print(f"left {removal.path}: {problem}" if problem else f"removed {removal.path}")
        print(f"freed {size(removed)}")
    if any(problem for _, problem in outcomes):
        raise typer.Exit(EXIT_BAD_NEWS)


def _print_plan(plan: Plan) -> None:

    for owner, reason in plan.kept:
        print(f"keep    {owner}: {reason}")
    for removal in plan.removals:
        print(f"remove  {removal.owner}: {removal.part} {removal.path.name}, {size(removal.num_bytes)}")


def _as_json(removal: object) -> dict[str, object]:
    return {name: str(value) if isinstance(value, Path) else value for name, value in vars(removal).items()}
