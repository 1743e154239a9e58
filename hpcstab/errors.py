"""Errors that a user can act on, and the exit code each one ends the command with.

Every message is one line that says what was got, what is allowed and what to do next. Anything
else that escapes is our own bug: the command writes its traceback to a file and exits 70.
"""

from __future__ import annotations

EXIT_OK = 0
EXIT_BAD_NEWS = 1
EXIT_WRONG_REQUEST = 2
EXIT_NO_ANSWER = 3
EXIT_OUR_BUG = 70


class HpcstabError(Exception):
    """Base of all errors that are explained to the user instead of traced."""

    exit_code = EXIT_NO_ANSWER

    def __init__(self, message: str, *, exit_code: int | None = None) -> None:
        super().__init__(message)
        if exit_code is not None:
            self.exit_code = exit_code


class ConfigError(HpcstabError):
    """The request is wrong: an unknown name or key, a wrong type, a value that is not allowed."""

    exit_code = EXIT_WRONG_REQUEST


class DataError(HpcstabError):
    """Data are missing, unreadable or not what the model needs."""


class LaunchError(HpcstabError):
    """A job could not be submitted, found or cancelled."""


class RunError(HpcstabError):
    """A run folder is missing, unreadable or cannot be written."""


class RankLostError(RunError):
    """One of several processes that train together has ended or does not answer."""


class CheckpointError(HpcstabError):
    """A checkpoint is missing, damaged or does not fit."""


class NumericsError(HpcstabError):
    """The numbers of a user's own training loop cannot be trained on."""
