"""csv and tsv."""

from __future__ import annotations

import csv
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, from_records
from peftlab.data.reading.text_files import FIELD_LIMIT, decoded_lines
from peftlab.errors import DataError


def open_csv(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a file separated by commas. Raises `DataError`."""
    return from_records(
        file.where, lambda: read_csv(file), counts_lines=True, all_text=True,
        nothing="only a header",
    )  # fmt: skip


def open_tsv(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a file separated by tabs. Raises `DataError`."""
    return from_records(
        file.where, lambda: read_tsv(file), counts_lines=True, all_text=True,
        nothing="only a header",
    )  # fmt: skip


def read_csv(file: DataFile) -> Numbered:
    """Comma-separated with a header line, fields quoted by `"` where necessary."""
    yield from _separated(file, ",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(file: DataFile) -> Numbered:
    """Tab-separated with a header line.

    Some files use quoting, and in others (GLUE's) a quote is an ordinary character. The file is
    read with quoting if every row is then complete, else without.
    """
    try:
        for _ in _separated(file, "\t", quoting=csv.QUOTE_MINIMAL):
            pass
    except DataError as with_quotes:
        try:
            for _ in _separated(file, "\t", quoting=csv.QUOTE_NONE):
                pass
        except DataError:
            raise with_quotes from None
        yield from _separated(file, "\t", quoting=csv.QUOTE_NONE)
    else:
        yield from _separated(file, "\t", quoting=csv.QUOTE_MINIMAL)


def _separated(file: DataFile, delimiter: str, *, quoting: Any) -> Numbered:
    limit_before = csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(
        (line for _, line in decoded_lines(file)),
        delimiter=delimiter, quoting=quoting, strict=True,
    )  # fmt: skip
    header: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            if fields and header is None:
                header = _check_header(file, fields, delimiter)
            elif fields and header is not None:
                if len(fields) != len(header):
                    raise DataError(
                        f"{file.where}:{start} has {len(fields)} fields, the header has "
                        f"{len(header)} ({', '.join(header)}). Quote fields that contain "
                        f"{'a comma' if delimiter == ',' else 'a tab'}."
                    )
                yield start, dict(zip(header, fields, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise _too_large(f"{file.where}:{start}", " Is a quote left open?") from None
        raise DataError(
            f"{file.where}:{start}: malformed {file.suffix.lstrip('.')}, {error}. "
            "Is a quote left open, or not doubled inside a quoted field?"
        ) from None
    finally:
        csv.field_size_limit(limit_before)


def _check_header(file: DataFile, fields: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in fields]
    for name in header:
        if not name:
            raise DataError(
                f"{file.where}:1: column {header.index(name) + 1} of the header has no name."
            )
        if header.count(name) > 1:
            raise DataError(f"{file.where}:1: the header names column {name!r} twice.")
    other = next((mark for mark in ";\t|," if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other:
        names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}[other]
        raise DataError(
            f"{file.where}:1: the header is one column, {header[0]!r}: the file seems separated by "
            f"{names}. Write it with {'commas (.csv)' if delimiter == ',' else 'tabs (.tsv)'}."
        )
    return header


def _too_large(where: str, hint: str = "") -> DataError:
    return DataError(f"{where}: one field has more than {FIELD_LIMIT:,} characters.{hint}")
