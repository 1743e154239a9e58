"""The typer application, its verbs, and what becomes of an error.

A verb raises; this file alone turns an error into one line and an exit code (0 done, 1 bad news, 2 the
request is wrong, 3 no answer possible, 70 our own bug with its traceback in a file).
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
from pathlib import Path
from typing import NoReturn

import typer

from hpcstab import __version__
from hpcstab.cli import (
    cancel,
    clusters,
    data,
    doctor,
    listing,
    logs,
    replay,
    report,
    rerun,
    runs,
    show,
    status,
    submit,
    train,
    why,
)
from hpcstab.errors import EXIT_NO_ANSWER, EXIT_OUR_BUG, EXIT_WRONG_REQUEST, HpcstabError

app = typer.Typer(
    name="hpcstab",
    help="Which change stops this training from going NaN, and how sure are we?",
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(asked: bool) -> None:
    if asked:
        typer.echo(f"hpcstab {__version__}")
        raise typer.Exit


@app.callback()
def _options(
    version: bool = typer.Option(False, "--version", callback=_version, is_eager=True, help="Print the version."),
) -> None:
    pass


app.command("list")(listing.list_models)
app.command("show")(show.show)
app.add_typer(data.app, name="data")
app.command("train")(train.train)
app.command("submit")(submit.submit)
app.command("status")(status.status)
app.command("logs")(logs.logs)
app.command("cancel")(cancel.cancel)
app.add_typer(clusters.app, name="clusters")
app.command("rerun")(rerun.rerun)
app.command("report")(report.report)
app.command("doctor")(doctor.doctor)
app.command("replay")(replay.replay)
app.command("why")(why.why)
app.command("runs")(runs.runs)


def main() -> NoReturn:
    """Run the command; ends the process."""
    try:
        code = app(sys.argv[1:] or ["--help"], standalone_mode=False)
        sys.exit(code if isinstance(code, int) else 0)
    except HpcstabError as error:
        _fail(str(error), error.exit_code)
    except typer.TyperException as error:
        _fail(error.format_message(), EXIT_WRONG_REQUEST)
    except (typer.Abort, KeyboardInterrupt):
        _fail("interrupted", 130)
    except BrokenPipeError:
        # the reader of a pipe (`hpcstab list | head`) has gone: no error, and nothing left to flush into
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(0)
    except OSError as error:
        _fail(f"{error.filename or 'output'}: {error.strerror}", EXIT_NO_ANSWER)
    except Exception:
        _fail(f"internal error, please report it; traceback in {_save_traceback()}", EXIT_OUR_BUG)


def _fail(message: str, code: int) -> NoReturn:
    print(f"hpcstab: {' '.join(message.split())}", file=sys.stderr)
    sys.exit(code)


def _save_traceback() -> Path:
    handle, name = tempfile.mkstemp(prefix="hpcstab-error-", suffix=".txt")
    with os.fdopen(handle, "w") as file:
        traceback.print_exc(file=file)
    return Path(name)
