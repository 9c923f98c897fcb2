"""The names of a table's columns; columns that hold row numbers, or nothing, are left out."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

_OF_INDEX = ("", "index", "unnamed: 0")


@dataclass(frozen=True, slots=True)
class Header:
    """The names of the columns that are kept, and their places in a row."""

    names: tuple[str, ...]
    places: tuple[int, ...]

    def record(self, fields: Sequence[str]) -> dict[str, str]:
        return {name: fields[i] for name, i in zip(self.names, self.places, strict=True)}


def numbered(width: int) -> Header:
    """The columns of a table without names: `1`, `2`, ..."""
    return Header(tuple(str(i + 1) for i in range(width)), tuple(range(width)))


def named(where: str, fields: Sequence[str], rows: Iterable[Sequence[str]]) -> Header:
    """The columns by a row of names; `rows` are the others, read where a name leaves doubt.

    An index (row numbers from 0 or 1 in a first column without a name, or called index or
    Unnamed: 0) and nameless empty columns are left out, which is logged. A nameless column with
    content is called by its number. Raises `DataError` for names that occur twice.
    """
    names = [name.strip() for name in fields]
    for name in names:
        if name and names.count(name) > 1:
            raise DataError(f"{where}: the header names column {name!r} twice.")
    doubtful = [i for i, name in enumerate(names) if not name or _may_be_index(i, name)]
    if not doubtful:
        return Header(tuple(names), tuple(range(len(names))))
    index, empty = _survey(doubtful, rows)
    dropped: list[str] = []
    kept: dict[str, int] = {}
    for i, name in enumerate(names):
        if i in empty and not name:
            dropped.append(f"column {i + 1}, which is empty")
        elif i in index and _may_be_index(i, name):
            dropped.append(f"column {i + 1}{f' ({name})' if name else ''}, which numbers the rows")
        else:
            called = name or str(i + 1)
            if called in kept or (not name and called in names):
                raise DataError(
                    f"{where}: column {i + 1} of the header has no name, and {called!r} is taken "
                    "by another; give it a name."
                )
            kept[called] = i
            if not name:
                logger.info("%s: column %s has no name; it is called %r", where, i + 1, called)
    if dropped:
        logger.info("%s: left out %s", where, "; ".join(dropped))
    return Header(tuple(kept), tuple(kept.values()))


def _may_be_index(place: int, name: str) -> bool:
    return place == 0 and name.lower() in _OF_INDEX


def _survey(places: Sequence[int], rows: Iterable[Sequence[str]]) -> tuple[set[int], set[int]]:
    """Which columns number the rows from 0 or 1, and which are empty."""
    index, empty = set(places), set(places)
    first: dict[int, int] = {}
    for count, fields in enumerate(rows):
        for i in places:
            text = fields[i].strip()
            if text:
                empty.discard(i)
            if i in index:
                number = int(text) if text.isascii() and text.isdigit() else -1
                start = first.setdefault(i, number)
                if number != start + count or start not in (0, 1):
                    index.discard(i)
        if not index and not empty:
            break
    return index - empty, empty
