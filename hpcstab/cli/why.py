"""``hpcstab why RUN|LOG|CKPT``: what happened, who did it, what is left, and what to type now."""

from __future__ import annotations

import shutil
import sys
from typing import Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json

_PIPE_WIDTH = 100


def why(
    target: Annotated[
        str, typer.Argument(metavar="RUN|LOG|CKPT", help="A run; a log or a checkpoint of anybody's; a bundle.")
    ],
    replays: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Run the failing step again, where there is a capsule.")
    ] = True,
    limit_s: Annotated[
        float, typer.Option("--limit", min=1, metavar="SECONDS", help="So long a replay and a scan may take each.")
    ] = 60.0,
    as_json: AsJson = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Why a run ended, or how it does: cause, first bad operation, evidence, checkpoints, and the next command.

    Exit codes: 0 nothing is wrong (it runs, waits, completed, or was cancelled); 1 bad news; 3 what is there does
    not tell.
    """
    from hpcstab.explain.look import Asking, look
    from hpcstab.explain.target import find_target
    from hpcstab.explain.text import story_text
    from hpcstab.launch.answers import scheduler_answers

    found = find_target(target, root)
    if found.run is not None:
        scheduler_answers(found.run.path.parents[2])  # Slurm is asked where a job of this root is still open
    story = look(found, Asking(replays, limit_s))
    if as_json:
        print_json(story.as_json())
    else:
        width = shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns if sys.stdout.isatty() else _PIPE_WIDTH
        print(story_text(story, max(60, min(width, 140))))
    raise typer.Exit(story.exit_code)
