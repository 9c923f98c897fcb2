"""Rows that cannot be used: said together by their causes, or left out and recorded."""

from __future__ import annotations

import json
import logging
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, Literal

from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

DROPPED_ROWS = "dropped_rows.jsonl"

Policy = Literal["error", "drop"]

_NAMED_ROWS = 3
_MOST_CAUSES = 8
# Values in a message: quoted text that is not a column's name, and numbers. Rows that differ in
# these alone have one cause.
_QUOTED = r"'(?:[^'\\]|\\.)*'|\"(?:[^\"\\]|\\.)*\""
_VALUES = re.compile(rf"(column (?:{_QUOTED}))|{_QUOTED}|\d+(?:\.\d+)?")

LEAVE_OUT = (
    f"data.on_bad_rows=drop leaves such rows out, and lists them in {DROPPED_ROWS} of the run."
)


def _cause(what: str) -> str:
    return _VALUES.sub(lambda found: found[1] or "_", what)


@dataclass(frozen=True, slots=True)
class DroppedRow:
    """A row that is left out: of which split, where it stands, why, and what it holds."""

    split: str
    location: str
    cause: str
    row: Any


@dataclass(slots=True)
class Causes:
    """Bad rows by cause: the message and the places of the first ones, and how many there are."""

    count: int = 0
    _first: dict[str, tuple[str, list[str]]] = field(default_factory=dict)
    _counts: Counter[str] = field(default_factory=Counter)

    def add(self, what: str, place: Callable[[], str]) -> str:
        """Add a row, and return its cause; `place` is asked for the first ones of each."""
        cause = _cause(what)
        _, places = self._first.setdefault(cause, (what, []))
        if len(places) < _NAMED_ROWS:
            places.append(place())
        self._counts[cause] += 1
        self.count += 1
        return cause

    def __bool__(self) -> bool:
        return self.count > 0

    def lines(self) -> list[str]:
        """A line a cause: the first places, the number of others, the first message."""
        lines = []
        for cause, count in self._counts.most_common(_MOST_CAUSES):
            what, places = self._first[cause]
            more = f" and {count - len(places)} more" if count > len(places) else ""
            lines.append(f"{', '.join(places)}{more}: {what}")
        if (others := len(self._counts) - _MOST_CAUSES) > 0:
            rows = sum(count for _, count in self._counts.most_common()[_MOST_CAUSES:])
            lines.append(f"... and {others} other causes in {rows} rows.")
        return lines

    def short(self) -> str:
        """The causes in one line, the most frequent first."""
        parts = [
            f"{count} x {self._first[cause][0]:.120}"
            for cause, count in self._counts.most_common(_NAMED_ROWS)
        ]
        more = len(self._counts) - _NAMED_ROWS
        return "; ".join([*parts, *([f"{more} other causes"] if more > 0 else [])])


class BadRows(DataError):
    """Rows of a split that cannot be used, by index, and what is wrong with each.

    The message names them by their number in the split, from 1; `located` by where they stand.
    """

    def __init__(self, reasons: Mapping[int, str], split: str | None = None) -> None:
        self.reasons = dict(reasons)
        self.split = split
        lines = self._causes(lambda index: f"row {index + 1}").lines()
        super().__init__("\n".join(lines))

    def _causes(self, place: Callable[[int], str]) -> Causes:
        causes = Causes()
        for index, reason in sorted(self.reasons.items()):
            causes.add(reason, lambda index=index: place(index))  # type: ignore[misc]
        return causes

    def located(self, place: Callable[[int], str], total: int) -> DataError:
        """The error with rows named by `place`; `total` rows are in the split."""
        lines = self._causes(place).lines()
        return DataError("\n".join([*lines, *([LEAVE_OUT] if len(self.reasons) < total else [])]))


@dataclass(slots=True)
class Dropped:
    """The rows of all splits that are left out."""

    rows: list[DroppedRow] = field(default_factory=list)

    def add(self, split: str, location: str, cause: str, row: Any) -> None:
        self.rows.append(DroppedRow(split, location, cause, row))


def counts_of(rows: Iterable[DroppedRow]) -> dict[str, dict[str, int]]:
    """The number of rows by split and cause; rows that differ in a value have one cause."""
    counts: dict[str, Counter[str]] = {}
    named: dict[str, str] = {}
    for row in rows:
        cause = named.setdefault(_cause(row.cause), row.cause)
        counts.setdefault(row.split, Counter())[cause] += 1
    return {split: dict(causes.most_common()) for split, causes in counts.items()}


def log_dropped(split: str, rows: Sequence[DroppedRow], total: int) -> None:
    """Say how many of `total` rows of a split are left out, and why."""
    if not rows:
        return
    causes = Causes()
    for row in rows:
        causes.add(row.cause, lambda: "")
    logger.warning(
        "%s: %d of %d rows are left out (data.on_bad_rows=drop): %s%s", split, len(rows), total,
        causes.short(), "" if split == "train" else "; its metrics are those of the other rows",
    )  # fmt: skip


def write_dropped(rows: Sequence[DroppedRow], folder: Path) -> None:
    """Write `dropped_rows.jsonl`, a line a row: split, location, cause, row. None where no row."""
    if rows:
        lines = (json.dumps(asdict(row), ensure_ascii=False, default=str) for row in rows)
        (folder / DROPPED_ROWS).write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
