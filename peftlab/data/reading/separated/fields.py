"""Rows of fields, read strictly with one separator and one kind of quoting."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from typing import Any

FIELD_LIMIT = 10_000_000
"""The most characters of a field. More is nearly always an unclosed quote or the wrong file."""


class Fault(Exception):
    """Where a file breaks a dialect: the line, and what it has; `width`: of a row's fields."""

    def __init__(self, line: int, what: str, *, width: bool = False) -> None:
        super().__init__(what)
        self.line, self.what, self.width = line, what, width


def rows_of(
    lines: Iterator[tuple[int, str]],
    delimiter: str,
    quotechar: str | None,
    taken: list[str] | None = None,
) -> Iterator[tuple[int, list[str]]]:
    """Each row's first line number and its fields; blank lines are skipped.

    `taken` holds the lines of the row that was just yielded. Raises `Fault` for malformed quoting,
    for fields above `FIELD_LIMIT`, and where rows end in different ways.
    """
    limit_before = csv.field_size_limit(FIELD_LIMIT)
    current: list[str] = [] if taken is None else taken
    numbers = [0]

    def feed() -> Iterator[str]:
        for number, line in lines:
            if not current:
                numbers[0] = number
            current.append(line)
            yield line

    quoting: Any = csv.QUOTE_NONE if quotechar is None else csv.QUOTE_MINIMAL
    reader = csv.reader(
        feed(), delimiter=delimiter, quotechar=quotechar, quoting=quoting, strict=True
    )
    bare_returns: bool | None = None
    try:
        for fields in reader:
            last = current[-1]
            if last.endswith(("\n", "\r")):
                bare = not last.endswith("\n")
                if bare_returns is not None and bare != bare_returns:
                    raise Fault(
                        numbers[0],
                        "ends with a carriage return alone, and other rows do not; remove it, or "
                        "quote the field that it is in"
                        if bare
                        else "ends with a line feed, and the rows before with a carriage return "
                        "alone",
                    )
                bare_returns = bare
            if fields:
                yield numbers[0], fields
            current.clear()
    except csv.Error as error:
        what = f"is malformed, {error}"
        if "field larger" in str(error):
            what = f"has one field with more than {FIELD_LIMIT:,} characters"
        raise Fault(numbers[0], what) from None
    finally:
        csv.field_size_limit(limit_before)
