"""Workbooks: xlsx, xls, xlsb and ods, each cell as the text that a csv of the sheet would have."""

from __future__ import annotations

import datetime
from collections.abc import Iterator, Mapping, Sequence
from itertools import islice
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, first_line
from peftlab.data.reading.separated.header import Header, named, numbered
from peftlab.data.reading.split_names import exact_split
from peftlab.errors import DataError


def is_workbook(file: DataFile) -> bool:
    """Whether a zip archive is a workbook."""
    import zipfile

    if not file.start(4).startswith(b"PK\x03\x04"):
        return False
    with file.open_seekable() as stream:
        try:
            names = zipfile.ZipFile(stream).namelist()
        except zipfile.BadZipFile:
            return False
    return any(name.startswith("xl/") for name in names) or "mimetype" in names


def open_workbook(file: DataFile, options: ReaderConfig) -> RawSplit | Mapping[str, RawSplit]:
    """The rows of the sheet that has any, of `data.reader.sheet`, or of sheets named as splits.

    Raises `DataError`.
    """
    from python_calamine import CalamineError, CalamineWorkbook, SheetVisibleEnum

    try:
        with file.open_seekable() as stream:
            book = CalamineWorkbook.from_filelike(stream)
            sheets = {
                sheet.name: _filled(book.get_sheet_by_name(sheet.name).to_python(
                    skip_empty_area=False))
                for sheet in book.sheets_metadata
                if sheet.visible == SheetVisibleEnum.Visible or options.sheet == sheet.name
            }  # fmt: skip
    except (CalamineError, OSError, ValueError) as error:
        raise DataError(
            f"{file.where} is not a readable workbook: {first_line(error)}. An encrypted one is "
            "saved without its password first."
        ) from None
    chosen = _chosen(file, sheets, options)
    splits = {name: _rows(f"{file.where} [{name}]", sheets[name], options) for name in chosen}
    return splits if len(splits) > 1 else next(iter(splits.values()))


Rows = list[tuple[int, list[str]]]


def _chosen(file: DataFile, sheets: Mapping[str, Rows], options: ReaderConfig) -> list[str]:
    names = list(sheets)
    if isinstance(options.sheet, int):
        if options.sheet > len(names):
            raise DataError(
                f"{file.where} has {len(names)} sheets, and data.reader.sheet is {options.sheet}."
            )
        return [names[options.sheet - 1]]
    if options.sheet is not None:
        if options.sheet not in sheets:
            raise DataError(
                f"{file.where} has no sheet {options.sheet!r} (data.reader.sheet); its sheets are "
                f"{', '.join(names)}."
            )
        return [options.sheet]
    filled = [name for name in names if sheets[name]]
    if not filled:
        raise DataError(f"{file.where} has no rows: every sheet is empty ({', '.join(names)}).")
    meant = [exact_split(name) for name in filled]
    if len(filled) > 1 and (None in meant or len(set(meant)) < len(meant)):
        raise DataError(
            f"{file.where} has several sheets with rows, {', '.join(filled)}; name one with "
            f"data.reader.sheet={filled[0]!r}."
        )
    return filled


def _filled(cells: Sequence[Sequence[Any]]) -> Rows:
    """Rows with any content, by their number in the sheet, as text, without empty columns ahead."""
    rows = [(n, [_text(cell) for cell in row]) for n, row in enumerate(cells, start=1)]
    return [(n, row) for n, row in rows if any(row)]


def _rows(where: str, rows: Rows, options: ReaderConfig) -> RawSplit:
    if type(options.header) is int:
        rows = [(n, row) for n, row in rows if n >= options.header]
    if not rows:
        raise DataError(f"{where} has no rows.")
    has_header = options.header is not False
    if has_header and len(rows) == 1:
        raise DataError(f"{where} has no rows (only a header).")
    _, first = rows[0]
    header = (
        named(where, first, (row for _, row in rows[1:])) if has_header else numbered(len(first))
    )

    def read(_: Sequence[str]) -> Numbered:
        return _records(iter(rows), header, has_header)

    return RawSplit(where, header.names, read, all_text=True, own_keys=True)


def _records(rows: Iterator[tuple[int, list[str]]], header: Header, has_header: bool) -> Numbered:
    for number, row in islice(rows, int(has_header), None):
        yield number, dict(header.record(row))


def _text(value: Any) -> str:
    """A cell as a sheet shows it without a format: whole numbers without a point, dates as ISO."""
    match value:
        case None:
            return ""
        case bool():
            return "TRUE" if value else "FALSE"
        case float():
            # A sheet has 15 digits; more are the binary number's rest.
            return (
                f"{value:.15g}" if not value.is_integer() or abs(value) > 1e15 else f"{value:.0f}"
            )
        case datetime.datetime():
            midnight = value.time() == datetime.time()
            return value.date().isoformat() if midnight else value.isoformat(" ")
        case datetime.date() | datetime.time():
            return value.isoformat()
        case _:
            return str(value)
