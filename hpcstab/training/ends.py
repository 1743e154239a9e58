"""How a training ends before its last step."""

from __future__ import annotations


class Diverged(Exception):  # noqa: N818 - it is a result, not an error
    """The numbers of the run ended it."""


class StateFault(Diverged):
    """The state itself is not finite before ``step``; where guards are on, the training goes back to a healthy one."""

    def __init__(self, step: int, reason: str) -> None:
        super().__init__(reason)
        self.step = step


class NothingValid(Diverged):
    """An evaluation without one valid batch; where guards are on, the training goes back with a lower learning rate."""


class Halted(Exception):  # noqa: N818 - it is a result, not an error
    """A rule ended the run, whose parameters are finite: going on would only repeat what was tried."""


class Stopped(Exception):  # noqa: N818 - it is a request, not an error
    """The attempt ends at a step boundary; the run is not over."""
