"""One attempt at a run: its record, its log, its training; in a job or in the foreground."""

from __future__ import annotations

import contextlib
import faulthandler
import traceback
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any

from hpcstab.errors import HpcstabError, RankLostError, RunError
from hpcstab.launch.machine import gpu_driver
from hpcstab.launch.output import teed_to
from hpcstab.rundir import RunDir, begin_attempt, end_attempt
from hpcstab.state.process import Process

if TYPE_CHECKING:
    from hpcstab.execute import Execution


def run_attempt(
    run: RunDir,
    facts: Mapping[str, Any] | None = None,
    stop_requested: Callable[[], str | None] = lambda: None,
    beside: Callable[[int], AbstractContextManager[None]] = lambda attempt: contextlib.nullcontext(),
    goes_on_after_loss: Callable[[], bool] = lambda: False,
) -> Execution:
    """Train one attempt and record it; of several ranks as the first one.

    Args:
        run: a complete run folder.
        facts: what the caller knows beyond the process: job id, slot, threads, devices, ranks.
        stop_requested: why to stop, None as long as there is no reason; the first reason must stay.
        beside: number of the attempt -> what is entered while it trains: the other ranks.
        goes_on_after_loss: asked where another rank was lost: whether the run was queued again. Else it has failed.

    Raises:
        HpcstabError: no record of the attempt could be made, or its run cannot be trained.
    """
    run.identity()  # a run that was removed while its job waited stays removed
    process = Process.current()
    machine = {"node": process.host, "process": process.model_dump(), "driver": gpu_driver(), "restart_count": 0}
    attempt = begin_attempt(run, {**machine, **(facts or {})})
    try:
        with teed_to(run.log(attempt)):
            print(f"attempt {attempt} of {run.run_id} on {process.host}, process {process.pid}")
            try:
                with beside(attempt):
                    execution = _execute(run, attempt, stop_requested)
            except RankLostError as error:
                _end_after_loss(run, attempt, error, goes_on_after_loss)
                raise
            reason = (stop_requested() or "stopped") if execution.state == "stopped" else execution.state
            print(f"attempt {attempt} ended: {reason}, {execution.steps_gained} steps")
    except RankLostError:
        raise
    except BaseException as error:
        # what ended the attempt is the news, not that its end could not be written either
        with contextlib.suppress(RunError):
            end_attempt(run, attempt, "SIGINT" if isinstance(error, KeyboardInterrupt) else "failed", 0)
        raise
    end_attempt(run, attempt, reason, execution.steps_gained)
    return execution


def _end_after_loss(run: RunDir, attempt: int, error: RankLostError, goes_on_after_loss: Callable[[], bool]) -> None:
    from hpcstab.execute import record_failure

    print(f"hpcstab: {error}")
    goes_on = goes_on_after_loss()
    with contextlib.suppress(RunError):
        if not goes_on:
            record_failure(run, attempt, str(error))
        end_attempt(run, attempt, "rank_lost" if goes_on else "failed", 0)


def _execute(run: RunDir, attempt: int, stop_requested: Callable[[], str | None]) -> Execution:
    try:
        # here, not above: it loads torch, which reads its number of threads and its GPUs at import
        from hpcstab.execute import execute

        faulthandler.enable(file=2)  # a crash in C leaves a traceback in the log
        return execute(run, attempt, stop_requested)
    except HpcstabError:
        raise
    except Exception:
        traceback.print_exc()  # into the log of the attempt; submitit's own copy is rarely looked at
        raise
