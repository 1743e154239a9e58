"""``hpcstab cancel``: ask queued and running jobs to end."""

from __future__ import annotations

from typing import Annotated

import typer

from hpcstab.cli.options import DEFAULT_ROOT, AsJson, Root
from hpcstab.cli.terminal import print_json, print_table


def cancel(
    what: Annotated[str, typer.Argument(metavar="RUN|CAMPAIGN", help="A path, a run id or its part, a campaign id.")],
    root: Root = DEFAULT_ROOT,
    as_json: AsJson = False,
) -> None:
    """Cancel a run or a whole campaign: a running trainer stops at its next step, a queued one never starts."""
    from dataclasses import asdict

    from hpcstab.launch.cancel import cancel as cancel_runs

    results = cancel_runs(what, root)
    if as_json:
        print_json([asdict(result) for result in results])
        return
    print_table(("run", "outcome"), [(result.run_id, result.outcome) for result in results])
