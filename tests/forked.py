"""A process of its own for a test, without the ten seconds of CPU that imports take in a fresh one.

The child is a fork of the test's process: it has what is imported there, and its own everything
else. What a fresh process alone shows (which modules a command imports, a terminal's signals, what
Triton's interpreter was chosen for) is tested in one.
"""

from __future__ import annotations

import os
import sys
import tempfile
import traceback
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO


@dataclass(frozen=True, slots=True)
class Ended:
    """How a child ended: `returncode` is negative where a signal ended it, as in subprocess."""

    returncode: int
    stdout: str
    stderr: str


def forked(run: Callable[[], int | None]) -> Ended:
    """Call `run` in a child and wait for it; None counts as 0, an exception as 1."""
    with started(run) as ended:
        return ended()


@contextmanager
def started(run: Callable[[], int | None]) -> Iterator[Callable[[], Ended]]:
    """Call `run` in a child, beside what follows; what this gives waits for the child, once."""
    with tempfile.TemporaryFile("w+") as out, tempfile.TemporaryFile("w+") as err:
        with warnings.catch_warnings():
            # Of threads in the parent: pytest-xdist's and torch's, which the child does not use.
            warnings.simplefilter("ignore", DeprecationWarning)
            child = os.fork()
        if child == 0:
            _child(run, out, err)

        def ended() -> Ended:
            _, status = os.waitpid(child, 0)
            for file in (out, err):
                file.seek(0)
            return Ended(os.waitstatus_to_exitcode(status), out.read(), err.read())

        yield ended


def _child(run: Callable[[], int | None], out: IO[str], err: IO[str]) -> None:
    """Never returns: no test and no fixture goes on in the child."""
    code = 1
    try:
        for stream, file in ((1, out), (2, err)):
            os.dup2(file.fileno(), stream)
        sys.stdout, sys.stderr = out, err
        code = run() or 0
    except BaseException:
        traceback.print_exc()
    finally:
        out.flush()
        err.flush()
        os._exit(code)
