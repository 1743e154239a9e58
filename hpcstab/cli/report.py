"""``hpcstab report``: compare runs, write one page, print its table and its verdict."""

from __future__ import annotations

import re
from datetime import datetime
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, NamedTuple

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Configs, Root

if TYPE_CHECKING:
    from hpcstab.report import Report
    from hpcstab.rundir import RunDir

DEFAULT_OUT = Path("reports/local")


def report(
    names: Annotated[list[str] | None, typer.Argument(metavar="[MODEL|RUN ...]", show_default=False)] = None,
    all_runs: Annotated[bool, typer.Option("--all", help="All runs, not only those of the newest campaign.")] = False,
    out: Annotated[
        Path | None, typer.Option("--out", help="Folder to write to. Default: reports/local/NAME.", show_default=False)
    ] = None,
    root: Root = DEFAULT_ROOT,
    configs: Configs = None,
    as_json: AsJson = False,
) -> None:
    """Compare runs: who went non-finite, who learned, and how sure that is.

    Without a name: the newest campaign. A model: its newest campaign. RUN: a path, a run id, or any
    unique part of one.
    """
    from hpcstab.cli.terminal import print_json
    from hpcstab.report import write_report

    choice = choose_runs(names or [], all_runs, root, configs)
    written = write_report(choice.runs, out or DEFAULT_OUT / choice.folder)
    if as_json:
        print_json(as_mapping(written))
        return
    print_report(written)
    if choice.num_left_out:
        print(f"not in it: {choice.num_left_out} older runs and runs of `train`; --all takes all")


class Choice(NamedTuple):
    """What the arguments ask for: a name for the report's folder, its runs, how many of the models are left out."""

    folder: str
    runs: list[RunDir]
    num_left_out: int


def choose_runs(names: list[str], all_runs: bool, root: Path, configs: Path | None) -> Choice:
    """Models and runs by name; of a model the newest campaign, unless all its runs are asked for.

    Raises:
        RunError: a name is neither a model nor a run, or there is nothing to report on.
    """
    from hpcstab.config import model_names
    from hpcstab.errors import RunError
    from hpcstab.report.select import models_under, newest_campaign_runs, runs_of_model
    from hpcstab.rundir import find_run

    models = [name for name in names if name in {*models_under(root), *model_names(configs)}]
    runs = [find_run(name, root) for name in names if name not in models]
    about = dict.fromkeys([*models, *(run.path.parts[-3] for run in runs)])
    folder = f"{'_'.join(about) or 'all'}_{datetime.now():%Y%m%d_%H%M%S}"
    num_left_out = 0
    every_model: list[str | None] = [None]
    for model in models or (every_model if not names else []):
        campaign, chosen = newest_campaign_runs(root, model)
        if all_runs:
            campaign, chosen = None, runs_of_model(root, model)
        if not chosen:
            of_model = f" of {model}" if model else ""
            raise RunError(
                f"no runs{of_model} under '{root}' to report on; `hpcstab submit {model or 'MODEL'}` makes some"
            )
        num_left_out += len(runs_of_model(root, model)) - len(chosen)
        folder = campaign if campaign and len(names) <= 1 else folder
        runs += chosen
    return Choice(re.sub(r"[^\w+.-]", "_", folder).lstrip("."), list(dict.fromkeys(runs)), num_left_out)


def print_report(written: Report) -> None:
    """The table, the verdict and where the report is."""
    from hpcstab.cli.terminal import print_table

    print_table(written.columns, written.rows)
    for sentence in written.verdict:
        print(sentence)
    for folder in written.unreadable:
        print(f"not readable, in no count: {folder}")
    print(f"report: {written.html}")


def as_mapping(written: Report) -> dict[str, object]:
    """The report for programs."""
    return {
        "folder": written.folder,
        "html": written.html,
        "markdown": written.markdown,
        "verdict": written.verdict,
        "table": [dict(zip(written.columns, row, strict=True)) for row in written.rows],
        "runs": written.runs,
        "unreadable": written.unreadable,
        "bad_news": written.bad_news,
    }
