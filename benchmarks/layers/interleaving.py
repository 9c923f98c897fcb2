"""Interleaved timing of rows, and their comparison.

A machine's speed drifts by more than the difference between two rows. Every round therefore runs
every row, every second round in reverse order, and rows are compared within rounds: the median of
the ratios, with the smallest and the largest. The first row runs twice per round, first and last:
the ratio of its two times is the noise (A/A).
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

AGAIN = " (again)"
"""The suffix of the second run of the first row."""

Rows = Mapping[str, Callable[[], object]]
Clock = Callable[[Callable[[], object]], float]


def wall_clock(run: Callable[[], object]) -> float:
    """Seconds of one call."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def take_turns(
    rows: Rows, rounds: int, *, warm_up: int = 2, clock: Clock = wall_clock
) -> dict[str, list[float]]:
    """Seconds of every row in every round, without warm-up rounds; the first row twice."""
    first = next(iter(rows))
    turns = [*rows.items(), (first + AGAIN, rows[first])]
    seconds: dict[str, list[float]] = {name: [] for name, _ in turns}
    for number in range(warm_up + rounds):
        for name, run in turns if number % 2 == 0 else reversed(turns):
            taken = clock(run)
            if number >= warm_up:
                seconds[name].append(taken)
    return seconds


@dataclass(frozen=True, slots=True)
class Ratio:
    """The ratio of one row's time to another's over the rounds."""

    median: float
    least: float
    greatest: float

    def __str__(self) -> str:
        return f"{self.median:.3f} [{self.least:.3f} .. {self.greatest:.3f}]"


def ratio(seconds: Mapping[str, Sequence[float]], row: str, to: str) -> Ratio:
    """`row`'s time over that of `to`."""
    ratios = [a / b for a, b in zip(seconds[row], seconds[to], strict=True)]
    return Ratio(statistics.median(ratios), min(ratios), max(ratios))


def noise(seconds: Mapping[str, Sequence[float]]) -> Ratio:
    """The row that ran twice over itself."""
    again = next(name for name in seconds if name.endswith(AGAIN))
    return ratio(seconds, again, again.removesuffix(AGAIN))


@dataclass(frozen=True, slots=True)
class Bar:
    """A claim about two rows' times: `row` takes at most, or at least, `limit` times `to`'s."""

    row: str
    to: str
    limit: float
    at_most: bool = True

    def judge(self, seconds: Mapping[str, Sequence[float]]) -> dict[str, Any] | None:
        """The bar with the measured ratio; None where one of its rows did not run."""
        if self.row not in seconds or self.to not in seconds:
            return None
        result = ratio(seconds, self.row, self.to)
        met = result.median <= self.limit if self.at_most else result.median >= self.limit
        return asdict(self) | {"measured": asdict(result), "met": met}


def summary(seconds: Mapping[str, Sequence[float]], bars: Sequence[Bar] = ()) -> dict[str, Any]:
    """JSON values: each row's median and times, its ratio to the first row, noise, and bars."""
    first = next(iter(seconds))
    return {
        "rounds": len(seconds[first]),
        "median_seconds": {name: statistics.median(all_) for name, all_ in seconds.items()},
        f"ratio_to_{first}": {name: asdict(ratio(seconds, name, first)) for name in seconds},
        "noise": asdict(noise(seconds)),
        "bars": [judged for bar in bars if (judged := bar.judge(seconds)) is not None],
        "seconds": {name: list(all_) for name, all_ in seconds.items()},
    }


def table(seconds: Mapping[str, Sequence[float]], bars: Sequence[Bar] = ()) -> str:
    """The rows for readers: median milliseconds and ratios to the first row, then the bars."""
    first = next(iter(seconds))
    lines = [
        f"  {name:30} {statistics.median(all_) * 1e3:10.2f} ms   "
        f"{ratio(seconds, name, first)} of {first}"
        for name, all_ in seconds.items()
    ]
    for bar in bars:
        if (judged := bar.judge(seconds)) is not None:
            lines.append(
                f"  {'met   ' if judged['met'] else 'MISSED'} {bar.row} / {bar.to} = "
                f"{judged['measured']['median']:.3f}, bar "
                f"{'<=' if bar.at_most else '>='} {bar.limit}"
            )
    return "\n".join(lines)
