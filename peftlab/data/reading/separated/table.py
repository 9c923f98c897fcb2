"""csv, tsv and other separated values: rows by the names of the header."""

from __future__ import annotations

import re
from collections.abc import Iterator
from itertools import islice

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.encodings import decoded_lines
from peftlab.data.reading.raw_splits import Numbered, RawSplit
from peftlab.data.reading.separated.dialect import Dialect, find_dialect
from peftlab.data.reading.separated.fields import Fault, rows_of
from peftlab.data.reading.separated.header import Header, named, numbered
from peftlab.errors import DataError

_SAID = re.compile(r"sep=([^\r\n])\s*", re.IGNORECASE)


def open_csv(file: DataFile, options: ReaderConfig) -> RawSplit:
    """The rows of a file of separated values. Raises `DataError`, also for open questions."""
    return _open(file, options, ",")


def open_tsv(file: DataFile, options: ReaderConfig) -> RawSplit:
    """As `open_csv`; a file of one column is separated by tabs."""
    return _open(file, options, "\t")


def _open(file: DataFile, options: ReaderConfig, usual: str) -> RawSplit:
    begin = options.header if type(options.header) is int else 1
    _, opening = next(decoded_lines(file, options, every_end=True), (0, ""))
    if (said := _SAID.fullmatch(opening)) and begin == 1:
        # What Excel writes and reads: the separator, on a line of its own.
        begin = 2
        if options.delimiter == "auto":
            options = options.model_copy(update={"delimiter": said[1]})

    def lines() -> Iterator[tuple[int, str]]:
        numbered_lines = decoded_lines(file, options, every_end=True)
        return ((n, line) for n, line in numbered_lines if n >= begin)

    has_header = options.header is not False
    if not any(line.strip() for _, line in lines()):
        raise DataError(f"{file.where} has no rows (only blank lines).")
    dialect = find_dialect(file.where, lines, options, usual)

    def rows() -> Iterator[tuple[int, list[str]]]:
        return _checked(file.where, rows_of(lines(), dialect.delimiter, dialect.quotechar), dialect)

    start, first = next(rows())
    if has_header and next(islice(rows(), 1, None), None) is None:
        raise DataError(f"{file.where} has no rows (only a header).")
    header = (
        named(f"{file.where}:{start}", first, (f for _, f in islice(rows(), 1, None)))
        if has_header
        else numbered(len(first))
    )
    return RawSplit(
        file.where, header.names, lambda _: _records(rows(), header, has_header),
        counts_lines=True, all_text=True, own_keys=True,
    )  # fmt: skip


def _records(rows: Iterator[tuple[int, list[str]]], header: Header, has_header: bool) -> Numbered:
    for number, fields in islice(rows, int(has_header), None):
        yield number, header.record(fields)


def _checked(
    where: str, rows: Iterator[tuple[int, list[str]]], dialect: Dialect
) -> Iterator[tuple[int, list[str]]]:
    """The rows, whose width is the first one's, also of a dialect that was given."""
    width = 0
    try:
        for number, fields in rows:
            width = width or len(fields)
            if len(fields) != width:
                raise DataError(
                    f"{where}:{number} has {len(fields)} fields, the first row has {width} "
                    f"(data.reader.delimiter is {dialect.delimiter!r})."
                )
            yield number, fields
    except Fault as fault:
        raise DataError(f"{where}:{fault.line} {fault.what}.") from None
