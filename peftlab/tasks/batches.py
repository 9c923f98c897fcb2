"""Work on the rows of a data set batch by batch, in several processes where there are many."""

from __future__ import annotations

import gc
import multiprocessing
import os
import signal
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from peftlab.errors import CheckFailed

if TYPE_CHECKING:
    import datasets

Result = TypeVar("Result")
Work = Callable[[dict[str, list[Any]], int], Result]
"""What is done with the columns of some rows, given the index of the first."""

BATCH = 1000
ROWS_A_PROCESS = 8000
"""Fewer rows take less time than the start of a process and the way back of what it made."""


def of_batches(
    rows: datasets.Dataset, work: Work[Result], *, processes: int | None = None
) -> Iterator[Result]:
    """The results of `work` for each thousand rows, in order.

    `processes`: by default as many as there are cores, each with at least `ROWS_A_PROCESS` rows;
    one where this process cannot fork. A forked process has `work` and `rows` as they are here:
    nothing is sent but results. Raises what `work` raises, `CheckFailed` where a process dies.
    """
    count = _processes(len(rows)) if processes is None else processes
    starts = range(0, len(rows), BATCH)
    if count <= 1:
        for start in starts:
            yield work(rows[start : start + BATCH], start)
        return
    context = multiprocessing.get_context("fork")
    # Kept out of the children's collections, whose marks would copy every page that is shared.
    gc.freeze()
    try:
        with ProcessPoolExecutor(
            count, mp_context=context, initializer=_begin, initargs=(partial(_one, rows, work),)
        ) as pool:
            yield from pool.map(_call, starts)
    except BrokenProcessPool:
        raise CheckFailed(
            f"one of the {count} processes that encode the rows ended without an answer; was it "
            "killed for want of memory?"
        ) from None
    finally:
        gc.unfreeze()


def _processes(rows: int) -> int:
    """How many processes are worth their start for so many rows."""
    # A fork is safe on Linux alone, and a child of a pool has its core already.
    if not hasattr(os, "sched_getaffinity") or multiprocessing.parent_process() is not None:
        return 1
    return min(len(os.sched_getaffinity(0)), rows // ROWS_A_PROCESS)


def _one(rows: datasets.Dataset, work: Work[Result], start: int) -> Result:
    return work(rows[start : start + BATCH], start)


_task: Callable[[int], Any] | None = None
"""A child's work; set when the child begins, since what is sent later would be pickled."""


def _begin(task: Callable[[int], Any]) -> None:
    global _task
    _task = task
    # Ctrl-C reaches every process of a terminal; the parent alone answers it, and ends the others.
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    # Each process has a core; the tokenizers' threads do not outlive a fork.
    os.environ["TOKENIZERS_PARALLELISM"] = "false"


def _call(start: int) -> Any:
    assert _task is not None
    return _task(start)
