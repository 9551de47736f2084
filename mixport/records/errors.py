"""The error tree: every error a user can meet names what, where, got and allowed, and the next command to
type.
"""

from __future__ import annotations

from enum import IntEnum


class ExitCode(IntEnum):
    """Process exit codes, as scripts may rely on them."""

    DONE = 0
    USER = 1
    USAGE = 2
    FAILED = 3
    BUG = 70
    INTERRUPTED = 130


class MixportError(Exception):
    """Base of every error that mixport raises on purpose.

    Attributes:
        hint: what to type or change next; None where there is nothing better than the message.
        exit_code: the process exit code that the command line maps this error to.
    """

    exit_code: ExitCode = ExitCode.USER

    def __init__(self, message: str, *, hint: str | None = None) -> None:
        super().__init__(message)
        self.hint = hint


class BadInputError(MixportError):
    """A file, folder or value from outside is missing, damaged, or of the wrong kind."""


class BadOptionError(MixportError):
    """An option has a value that is not allowed, or that contradicts another one."""

    exit_code = ExitCode.USAGE


class UnsupportedModelError(MixportError):
    """The model holds an operator or a structure that cannot be captured, quantised or lowered."""


class TargetError(MixportError):
    """A target file is damaged, unknown, or cannot do what was asked of it."""


class SizeBudgetError(MixportError):
    """No choice of widths keeps the file within the size asked for."""


class StoreError(MixportError):
    """A record on disk cannot be read or written."""


class TrainingError(MixportError):
    """A training cannot go on: its loss is no number any more, or nothing is left to learn."""


class ValidationFailedError(MixportError):
    """Codes differ, or a gate is not met."""

    exit_code = ExitCode.FAILED


class InvariantError(MixportError):
    """A pass broke a promise: our bug, never the user's."""

    exit_code = ExitCode.BUG


class RuntimeUnavailableError(MixportError):
    """A runtime is not installed, does not start, or broke off."""
