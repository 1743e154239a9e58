"""``python -m hpcstab.launch.rank <run>``: one of the other ranks of an attempt, beside the first one."""

from __future__ import annotations

import contextlib
import faulthandler
import sys
import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path

from hpcstab.errors import EXIT_BAD_NEWS, HpcstabError
from hpcstab.launch.signals import StopSignals
from hpcstab.rundir import RunDir


def train_beside(
    run: RunDir,
    stop_requested: Callable[[], str | None],
    recorded: Callable[[int], AbstractContextManager[None]] = lambda attempt: contextlib.nullcontext(),
) -> str:
    """Train as another rank; how it ended. The first one writes every file of the run but this rank's log.

    Args:
        recorded: number of the attempt -> what is entered while it trains.

    Raises:
        SystemExit: it failed; why is printed.
    """
    try:
        from hpcstab.execute import execute_beside

        faulthandler.enable(file=2)
        return execute_beside(run, stop_requested, recorded).state
    except HpcstabError as error:
        print(f"hpcstab: {error}", flush=True)
        raise SystemExit(error.exit_code) from None
    except Exception:
        traceback.print_exc()
        raise SystemExit(EXIT_BAD_NEWS) from None


def main(run: str) -> int:
    """Train, asked to stop by signals."""
    with StopSignals() as signals:
        print(f"ended: {train_beside(RunDir(Path(run)), signals.requested)}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
