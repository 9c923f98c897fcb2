"""Errors that a user can act on; each carries the exit code that the command line returns."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from difflib import get_close_matches
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


def did_you_mean(given: str, known: Iterable[str], *, most: int = 1, cutoff: float = 0.6) -> str:
    """`; did you mean X?` for the known names that are spelt most like a mistaken one, or nothing.

    Upper and lower case are the same. A mapping of names gives the text to show for each. A message
    goes on with `did_you_mean(...) or "."`, or whatever parts its sentences where no name is near.
    """
    shown = known if isinstance(known, Mapping) else {name: name for name in known}
    names = {name.lower(): name for name in shown}
    near = get_close_matches(given.lower(), names, n=most, cutoff=cutoff)
    if not near:
        return ""
    *others, last = [str(shown[names[name]]) for name in near]
    first = f"{', '.join(others)} or " if others else ""
    return f"; did you mean {first}{last}?"
