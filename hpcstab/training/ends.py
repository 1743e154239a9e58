"""How a training ends before its last step."""

from __future__ import annotations


class Diverged(Exception):  # noqa: N818 - it is a result, not an error
    """The numbers of the run ended it."""


class Halted(Exception):  # noqa: N818 - it is a result, not an error
    """A rule ended the run, whose parameters are finite."""


class Stopped(Exception):  # noqa: N818 - it is a request, not an error
    """The attempt ends at a step boundary; the run is not over."""
