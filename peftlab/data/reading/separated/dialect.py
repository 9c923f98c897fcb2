"""The separator and the quoting of a file: those under which every row is complete.

Each separator is tried with quotes and, where they do not fit, without. What two readings leave
open is a question to the user: a wrong choice merges or splits rows silently.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import islice

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.separated.fields import Fault, rows_of
from peftlab.data.reading.separated.quotes import Evidence
from peftlab.errors import DataError

Lines = Callable[[], Iterator[tuple[int, str]]]

NAMES = {",": "comma", ";": "semicolon", "\t": "tab", "|": "bar"}


@dataclass(frozen=True, slots=True)
class Dialect:
    """A separator, and the character around fields; None: quotes are text."""

    delimiter: str
    quotechar: str | None


@dataclass(frozen=True, slots=True)
class _Reading:
    """What reading all rows with one separator gave; `question`: what it leaves open."""

    delimiter: str
    quotechar: str | None
    width: int
    fault: Fault | None = None
    question: str = ""


def find_dialect(where: str, lines: Lines, options: ReaderConfig, usual: str) -> Dialect:
    """The separator and quoting of a file's lines. `usual` separates where there is one column.

    Raises `DataError` where no separator gives every row the width of the first, and a question
    where several readings do.
    """
    asked = options.delimiter
    if asked != "auto" and options.quotechar != "auto":
        return Dialect(asked, options.quotechar)
    candidates = tuple(NAMES) if asked == "auto" else (asked,)
    several = {d for d in candidates if _cuts_the_first_row(lines, d, options)}
    kept = several or {usual if asked == "auto" else asked}
    readings = {d: _read(where, lines, d, options) for d in candidates if d in kept}
    whole = [r for r in readings.values() if r.fault is None and r.width > 1]
    if len(whole) > 1:
        named = " or ".join(NAMES.get(r.delimiter, r.delimiter) for r in whole)
        raise DataError(
            f"{where}: every row is complete whether its fields are separated by {named}; say "
            f"which with data.reader.delimiter={_spelt(whole[0].delimiter)}."
        )
    chosen = whole[0] if whole else next(iter(readings.values()))
    if chosen.fault is not None:
        raise _none_fits(where, list(readings.values()), chosen)
    if not several and asked == "auto":
        _check_one_column(where, lines, usual)
    if chosen.question:
        raise DataError(chosen.question)
    return Dialect(chosen.delimiter, chosen.quotechar)


def _cuts_the_first_row(lines: Lines, delimiter: str, options: ReaderConfig) -> bool:
    quotechar = '"' if options.quotechar == "auto" else options.quotechar
    for quotes in (quotechar, None):
        try:
            for _, fields in rows_of(lines(), delimiter, quotes):
                return len(fields) > 1
        except Fault:
            continue
    return False


def _read(where: str, lines: Lines, delimiter: str, options: ReaderConfig) -> _Reading:
    quotechar = '"' if options.quotechar == "auto" else options.quotechar
    quoted = _measure(lines, delimiter, quotechar, options)
    if options.quotechar != "auto":
        return quoted
    if quoted.fault is not None:
        bare = _measure(lines, delimiter, None, options)
        if bare.fault is None and not _looks_quoted(lines, delimiter):
            return bare
        return quoted
    evidence = Evidence.of(lines, delimiter, quoted.width)
    verdict, why = evidence.verdict(where)
    if verdict == "text":
        return _Reading(delimiter, None, quoted.width)
    return _Reading(delimiter, '"', quoted.width, question=why)


def _measure(
    lines: Lines, delimiter: str, quotechar: str | None, options: ReaderConfig
) -> _Reading:
    """Whether every row has the width of the first."""
    width = 0
    try:
        for start, fields in rows_of(lines(), delimiter, quotechar):
            if not width:
                width = len(fields)
            elif len(fields) != width:
                what = f"has {len(fields)} fields, the header has {width}"
                if options.header is False:
                    what = f"has {len(fields)} fields, the first row has {width}"
                return _Reading(delimiter, quotechar, width, Fault(start, what, width=True))
    except Fault as fault:
        return _Reading(delimiter, quotechar, width, fault)
    return _Reading(delimiter, quotechar, width)


def _looks_quoted(lines: Lines, delimiter: str) -> bool:
    """Whether some column begins and ends with quotes in nearly every row, or in the header."""
    counts: list[int] = []
    rows = 0
    for _, fields in rows_of(lines(), delimiter, None):
        wrapped = [len(f) > 1 and f[0] == f[-1] == '"' for f in fields]
        if not counts:
            counts = [0] * len(fields)
            if any(wrapped):
                return True
            continue
        rows += 1
        for i, is_wrapped in enumerate(wrapped):
            counts[i] += is_wrapped
    return rows > 1 and any(count > 0.9 * rows for count in counts)


def _check_one_column(where: str, lines: Lines, usual: str) -> None:
    """Refuse one column whose rows another separator would cut evenly."""
    for other in NAMES:
        if other == usual:
            continue
        try:
            if "".join(line for _, line in islice(lines(), 2)).count(other) == 0:
                continue
            rows = islice(rows_of(lines(), other, None), 1, None)
            widths = {len(fields) for _, fields in rows}
        except Fault:
            continue
        if len(widths) == 1 and widths != {1}:
            (width,) = widths
            raise DataError(
                f"{where}: the header is one column, and a {NAMES[other]} cuts every row into "
                f"{width}; set data.reader.delimiter={_spelt(other)} if it separates them (then "
                f"with data.reader.header=false), or ={_spelt(usual)} if rows are one text."
            )


def _none_fits(where: str, readings: list[_Reading], usual: _Reading) -> DataError:
    """The error of a file without a complete reading: the fault of the likeliest one."""
    several = [r for r in readings if r.width > 1 and r.fault is not None]
    likely = max(several, key=lambda r: r.fault.line if r.fault else 0, default=usual)
    fault = likely.fault
    assert fault is not None
    name = NAMES.get(likely.delimiter, likely.delimiter)
    if fault.width:
        way_out = (
            f"Quote fields that contain a {name}, or name what separates fields: "
            "data.reader.delimiter; data.reader.quotechar=null where quotes are text."
        )
    else:
        way_out = (
            "Is a quote left open, or not doubled inside a quoted field? Where quotes are text, "
            "set data.reader.quotechar=null."
        )
    return DataError(f"{where}:{fault.line} {fault.what} (fields by {name}). {way_out}")


def _spelt(delimiter: str) -> str:
    return {"\t": "tab", ",": "comma", ";": "semicolon", "|": "pipe"}.get(delimiter, delimiter)
