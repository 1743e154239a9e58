"""Options that several verbs share, so that one word means one thing everywhere."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

Root = Annotated[Path, typer.Option("--root", help="Folder of the runs.")]
Configs = Annotated[
    Path | None, typer.Option("--configs", help="Folder that holds configs/, jobs/ or both.", show_default=False)
]
Scale = Annotated[str | None, typer.Option("--scale", help="full, small, quick, ... of the model's YAML.")]
Settings = Annotated[
    list[str] | None, typer.Option("--set", help="Override a key: optimizer.lr=1e-3. May be repeated.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Print JSON instead of a table.")]

DEFAULT_ROOT = Path("runs")
