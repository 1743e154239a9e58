"""Write a report: made whole in a folder aside, then brought into place file by file."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from hpcstab.errors import EXIT_WRONG_REQUEST, RunError
from hpcstab.report.facts import Row, rows_as_csv
from hpcstab.report.lineage import with_ancestors
from hpcstab.report.load import load_runs
from hpcstab.report.page import Page, make_page
from hpcstab.report.render import render_html, render_markdown
from hpcstab.report.tables import terminal_table
from hpcstab.rundir import RunDir

_BAD_STATES = ("failed", "lost", "unreadable")


@dataclass(frozen=True)
class Report:
    """A written report, and what a terminal shows of it.

    ``verdict`` is one sentence a model and scale; ``rows`` are the cells of the table under ``columns``;
    ``bad_news``: a run crashed or was lost, or a folder could not be read. A diverged run is a result.
    """

    folder: Path
    html: Path
    markdown: Path
    verdict: tuple[str, ...]
    columns: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
    runs: tuple[Row, ...]
    unreadable: tuple[str, ...]
    bad_news: bool


def write_report(runs: list[RunDir], out: Path, title: str | None = None) -> Report:
    """report.html, report.md, runs.csv and figures/ about ``runs`` and what they go on from, in the folder ``out``.

    Raises:
        RunError: there is no run, none can be read, or ``out`` cannot be written.
    """
    if not runs:
        raise RunError("there are no runs to report on; `hpcstab submit MODEL` makes some")
    loaded, broken = load_runs(with_ancestors(runs))
    if not loaded:
        raise RunError(f"none of the {len(broken)} run folders can be read; {broken[0].path}: {broken[0].reason}")
    page = make_page(loaded, broken, title, datetime.now().astimezone())
    _write(page, out)
    table = terminal_table([chapter.section for chapter in page.chapters])
    return Report(
        folder=out,
        html=out / "report.html",
        markdown=out / "report.md",
        verdict=tuple(chapter.verdict for chapter in page.chapters),
        columns=table.columns,
        rows=table.rows,
        runs=tuple(page.rows),
        unreadable=tuple(f"{folder.path}: {folder.reason}" for folder in broken),
        bad_news=bool(broken) or any(row["state"] in _BAD_STATES for row in page.rows),
    )


def _write(page: Page, out: Path) -> None:
    if out.exists() and not out.is_dir():
        raise RunError(f"'{out}' is a file; --out names a folder", exit_code=EXIT_WRONG_REQUEST)
    try:
        with _aside(out) as folder:
            (folder / "figures").mkdir(parents=True)
            for picture in page.pictures:
                (folder / "figures" / picture.name).write_bytes(picture.png)
            (folder / "runs.csv").write_text(rows_as_csv(page.rows), encoding="utf-8")
            (folder / "report.md").write_text(render_markdown(page), encoding="utf-8")
            (folder / "report.html").write_text(render_html(page), encoding="utf-8")
            _into_place(folder, out)
    except OSError as error:
        raise RunError(f"report folder '{out}' cannot be written: {error.strerror}; choose another --out") from None


@contextlib.contextmanager
def _aside(out: Path) -> Iterator[Path]:
    """A folder beside ``out``, on its file system; gone at the end, whatever happened."""
    folder = out.absolute().parent / f".{out.name}.{os.getpid()}.aside"
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _into_place(folder: Path, out: Path) -> None:
    """Rename each file over an older one: pictures first, so that a page never misses one."""
    for file in sorted(folder.rglob("*"), key=lambda path: (path.parent == folder, path.name)):
        if file.is_file():
            target = out / file.relative_to(folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            file.replace(target)
