"""Errors that a user can act on; each carries the exit code that the command line returns."""

from __future__ import annotations

from typing import ClassVar


class PeftlabError(Exception):
    """Something the user can mend. The message names the value, the limit and the way out."""

    exit_code: ClassVar[int] = 1


class ConfigError(PeftlabError):
    """Bad usage or configuration: an unknown key, a value out of range, keys that contradict."""

    exit_code = 2


class DataError(PeftlabError):
    """The data cannot be used as asked: missing, malformed, empty, of the wrong kind."""

    exit_code = 3


class CheckFailed(PeftlabError):
    """A check on the model, the targets or the run failed; nothing was trained or written."""

    exit_code = 3


class VerificationError(PeftlabError):
    """What was written does not compute what it should."""

    exit_code = 4


class Interrupted(PeftlabError):
    """The user stopped the run; a checkpoint to resume from was saved first."""

    exit_code = 130
