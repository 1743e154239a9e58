"""``hpcstab replay CAPSULE``: who made the first non-finite value of a failing step, and what to change."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json
from hpcstab.errors import EXIT_WRONG_REQUEST, CheckpointError

_FILES = ("manifest.json", "state.pt")


def replay(
    target: Annotated[
        str,
        typer.Argument(metavar="CAPSULE|RUN", help="A folder under RUN/capsules, or a run: its first capsule."),
    ],
    device: Annotated[
        str | None, typer.Option("--device", help="cpu or cuda. Default: where it failed.", show_default=False)
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", metavar="FILE.py:Task", help="Where your own task lies here.", show_default=False),
    ] = None,
    as_json: AsJson = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Run a failing step again: which operation made its first non-finite value, and what to change."""
    from hpcstab.execute import replay as run_again

    replayed = run_again(_capsule(target, root), device, model)
    if as_json:
        print_json(replayed.as_json())
        return
    print(replayed)


def _capsule(target: str, root: Path) -> Path:
    """The folder that ``target`` means: a capsule, a file in one, or the first capsule of a run."""
    from hpcstab.errors import RunError
    from hpcstab.rundir import find_run

    path = Path(target)
    if path.name in _FILES and path.is_file():
        return path.parent
    if path.is_dir() and not (path / "run.json").is_file():
        return path
    try:
        run = find_run(target, root)
    except RunError as error:
        raise CheckpointError(
            f"'{target}' is no capsule folder (RUN/capsules/step_...), and as a run: {error}",
            exit_code=EXIT_WRONG_REQUEST,
        ) from None
    found = sorted(run.capsules.glob("step_*"))
    if not found:
        raise CheckpointError(f"{run.run_id}: has no capsule; one is written at the first step that is not finite")
    return found[0]
