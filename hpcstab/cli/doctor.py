"""``hpcstab doctor PATH... [--fix]``: what is wrong with a checkpoint of anyone's training, and a repaired copy."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from hpcstab.cli.options import AsJson
from hpcstab.cli.terminal import print_json
from hpcstab.errors import ConfigError


def doctor(
    paths: Annotated[
        list[Path],
        typer.Argument(metavar="PATH...", help="Files, run folders, or folders of checkpoints.", show_default=False),
    ],
    fix: Annotated[bool, typer.Option("--fix", help="Write <name>_FIXED beside each sick one.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Where --fix writes; for one checkpoint.", show_default=False)
    ] = None,
    against: Annotated[
        Path | None,
        typer.Option(
            "--against", metavar="SIBLING", help="Compare with it; --fix restores from it.", show_default=False
        ),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """What is wrong with a checkpoint of any PyTorch training, and a repaired copy of it. Never runs code from a file.

    Exit code: 0 healthy, 1 sick or unsafe, 2 wrong request, 3 unreadable; with --fix 0 where what was written is clean.
    """
    from hpcstab.doctor import checkpoints_in, diagnose, repair
    from hpcstab.doctor.text import diagnosis_text, repair_text
    from hpcstab.execute import reestimate

    if out is not None and not fix:
        raise ConfigError("--out says where --fix writes; say --fix too")
    found = list(dict.fromkeys(each for path in paths for each in checkpoints_in(path)))
    if out is not None and len(found) > 1:
        raise ConfigError(f"--out is for one checkpoint, these are {len(found)}; leave it away or name one")
    printed, codes = [], []
    for path in found:
        if fix:
            repaired = repair(path, out, against=against, reestimate=reestimate)
            printed.append(repaired.as_json() if as_json else repair_text(repaired))
            codes.append(repaired.exit_code)
        else:
            diagnosis = diagnose(path, against)
            printed.append(diagnosis.as_json() if as_json else diagnosis_text(diagnosis))
            codes.append(diagnosis.exit_code)
        if not as_json:
            print(printed[-1])
    if as_json:
        print_json(printed)
    if max(codes):
        raise typer.Exit(max(codes))
