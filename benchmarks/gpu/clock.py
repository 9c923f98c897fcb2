"""Timing on a GPU by CUDA events, and a budget of wall time for a whole suite."""

from __future__ import annotations

import math
import time
from collections import defaultdict
from collections.abc import Callable

import torch

VISIT = 0.012
"""Seconds that a row runs at a stretch, so that starting and stopping do not count."""
LONG = 0.05
"""Of a call that takes so long neither does, and it runs once."""


class Clock:
    """Seconds of one call, from a stretch of calls between two events; or from the wall clock.

    Of short calls one more goes ahead, so that the GPU is busy when the first event is reached:
    what is measured is its work, not the wait for the next launch. `host` is what the calls took to
    launch: where that is no less than the result, the processor is what was measured.
    """

    def __init__(self, device: str) -> None:
        self._cuda = device.startswith("cuda")
        self._calls: dict[Callable[[], object], int] = {}
        self.host: defaultdict[Callable[[], object], list[float]] = defaultdict(list)

    def __call__(self, run: Callable[[], object]) -> float:
        """Seconds of one call of `run`; its first visit also finds out how many make a stretch."""
        if not self._cuda:
            started = time.perf_counter()
            run()
            self.host[run].append(time.perf_counter() - started)
            return self.host[run][-1]
        if run not in self._calls:
            run()
            once = self._stretch(run, 1)
            self._calls[run] = 1 if once > LONG else min(100, max(2, math.ceil(VISIT / once)))
        return self._stretch(run, self._calls[run])

    def forget(self) -> None:
        """Release everything that was timed."""
        self._calls.clear()
        self.host.clear()

    def _stretch(self, run: Callable[[], object], calls: int) -> float:
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        torch.cuda.synchronize()
        if calls > 1:
            run()
        begin.record()
        started = time.perf_counter()
        for _ in range(calls):
            run()
        self.host[run].append((time.perf_counter() - started) / calls)
        end.record()
        end.synchronize()
        return float(begin.elapsed_time(end)) / 1e3 / calls


class Budget:
    """The wall time of a suite; cases that no longer fit are left out and listed."""

    def __init__(self, seconds: float) -> None:
        self._end = time.monotonic() + seconds

    @property
    def left(self) -> float:
        """Seconds left, at least 0."""
        return max(0.0, self._end - time.monotonic())

    def allows(self, seconds: float) -> bool:
        """Whether a case that may take this long can still start."""
        return self.left >= seconds
