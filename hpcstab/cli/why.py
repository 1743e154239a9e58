"""``hpcstab why RUN|LOG|CKPT``: what happened, who did it, what is left, and what to type now."""

from __future__ import annotations

import shutil
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json, print_table
from hpcstab.errors import ConfigError

if TYPE_CHECKING:
    from hpcstab.explain.story import Story

_PIPE_WIDTH = 100


def _list_causes(asked: bool) -> None:
    if not asked:
        return
    from hpcstab.explain.causes import CAUSES

    rows = [(name, about.meaning, about.confirm, str(about.exit_code)) for name, about in CAUSES.items()]
    print_table(
        ("cause", "what it means", "what makes it certain", "exit"),
        rows,
        folding=("what it means", "what makes it certain"),
    )
    raise typer.Exit


def why(
    target: Annotated[
        str, typer.Argument(metavar="RUN|LOG|CKPT", help="A run; a log or a checkpoint of anybody's; a bundle.")
    ],
    replays: Annotated[
        bool, typer.Option("--replay/--no-replay", help="Run the failing step again, where there is a capsule.")
    ] = True,
    scans: Annotated[
        bool, typer.Option("--scan/--no-scan", help="Read the run's checkpoints, up to 4 GB of them.")
    ] = True,
    limit_s: Annotated[
        float, typer.Option("--limit", min=1, metavar="SECONDS", help="So long a replay and a scan may take each.")
    ] = 60.0,
    bundle: Annotated[
        Path | None,
        typer.Option("--bundle", metavar="FILE", help="Also write all of it into FILE.zip or FILE.tar.gz, to be sent."),
    ] = None,
    keep_names: Annotated[
        bool, typer.Option("--keep-names", help="In a bundle: leave host names, and user names in paths, as they are.")
    ] = False,
    causes: Annotated[
        bool, typer.Option("--causes", callback=_list_causes, is_eager=True, help="List all causes that there are.")
    ] = False,
    as_json: AsJson = False,
    root: Root = DEFAULT_ROOT,
) -> None:
    """Why a run ended, or how it does: cause, first bad operation, evidence, checkpoints, and the next command.

    Exit codes: 0 nothing is wrong (it runs, waits, completed, or was cancelled); 1 bad news; 3 what is there does
    not tell.
    """
    from hpcstab.explain.bundle import write_bundle
    from hpcstab.explain.bundled import story_of_bundle
    from hpcstab.explain.look import Asking, facts_of, look
    from hpcstab.explain.run_story import story_of_run
    from hpcstab.explain.target import find_target
    from hpcstab.launch.answers import scheduler_answers

    found, asking = find_target(target, root), Asking(replays, scans, limit_s)
    if found.run is not None:
        scheduler_answers(found.run.path.parents[2])  # Slurm is asked where a job of this root is still open
    if bundle is not None:
        if found.kind != "run" or found.run is None:
            raise ConfigError("--bundle is of a run; a log or a checkpoint is one file already")
        facts = facts_of(found.run, asking)
        story = story_of_run(facts)
        print(write_bundle(bundle, facts, story, keep_names=keep_names), file=sys.stderr)
    else:
        story = story_of_bundle(found.path, asking) if found.kind == "bundle" else look(found, asking)
    _show(story, as_json)
    raise typer.Exit(story.exit_code)


def _show(story: Story, as_json: bool) -> None:
    from hpcstab.explain.text import story_text

    if as_json:
        print_json(story.as_json())
        return
    width = shutil.get_terminal_size((_PIPE_WIDTH, 0)).columns if sys.stdout.isatty() else _PIPE_WIDTH
    print(story_text(story, max(60, min(width, 140))))
