"""Readers of json, jsonl, csv, tsv and txt, line by line, so that errors can name the line.

Each reader yields `(number, record)`: a 1-based line (or, for a JSON array, row) number and the
row's columns. Nothing is cached, so changes of a file always take effect.
"""

from __future__ import annotations

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peftlab.errors import DataError

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record]]

FIELD_LIMIT = 10_000_000
"""The most characters of a field. More is nearly always an unclosed quote or the wrong file."""

_UTF8_BOM = b"\xef\xbb\xbf"
_UTF16_BOMS = (b"\xff\xfe", b"\xfe\xff")
_OTHER_FORMATS = {
    b"\x1f\x8b": "gzip-compressed",
    b"PK\x03\x04": "a zip archive",
    b"PAR1": "a parquet file",
    b"ARROW1": "an Arrow file",
    b"%PDF": "a PDF",
}


def _decoded_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Lines of a UTF-8 file, line ends kept, a byte-order mark dropped."""
    with path.open("rb") as file:
        for number, raw in enumerate(file, start=1):
            if number == 1:
                _refuse_other_formats(path, raw)
                raw = raw.removeprefix(_UTF8_BOM)
            if b"\0" in raw:
                raise DataError(
                    f"{path}:{number} contains NUL bytes: the file is binary, or text in UTF-16. "
                    "Give it as UTF-8 text (iconv -f utf-16 -t utf-8 converts)."
                )
            try:
                yield number, raw.decode("utf-8")
            except UnicodeDecodeError as error:
                raise DataError(
                    f"{path}:{number} is not UTF-8: byte 0x{raw[error.start]:02x} at column "
                    f"{error.start + 1}. If the file is Latin-1 or Windows-1252, convert it "
                    "(iconv -f windows-1252 -t utf-8); if it is binary, it is not a data file."
                ) from None


def _refuse_other_formats(path: Path, start: bytes) -> None:
    if start.startswith(_UTF16_BOMS):
        raise DataError(
            f"{path} is UTF-16; peftlab reads UTF-8 (iconv -f utf-16 -t utf-8 converts)."
        )
    for magic, what in _OTHER_FORMATS.items():
        if start.startswith(magic):
            raise DataError(
                f"{path} is {what}, not {path.suffix.lstrip('.')} text: {_way_out(what)}."
            )


def _way_out(what: str) -> str:
    return "name it .parquet" if "parquet" in what else "unpack or convert it first"


def read_jsonl(path: Path) -> Numbered:
    """One JSON object per line; blank lines are skipped."""
    for number, line in _decoded_lines(path):
        if line.strip():
            yield number, _parse_object(path, number, line)


def _parse_object(path: Path, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{number}: malformed JSON, {error.msg} at column {error.colno}. "
            "A jsonl file has one complete object per line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}:{number}: unreadable JSON ({str(error)[:80]}).") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{path}:{number} holds {_kind(row)}, not an object of columns like "
            '{"text": ..., "label": ...}.'
        )
    return row


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r:.40}"


def read_json(path: Path) -> Numbered:
    """An array of objects, or one object per line, as in many .json files."""
    lines = _decoded_lines(path)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("{") and _is_row(first[1]):
        yield first[0], _parse_object(path, *first)
        for number, line in lines:
            if line.strip():
                yield number, _parse_object(path, number, line)
        return
    text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{path}:{error.lineno}: malformed JSON, {error.msg} at column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{path}: unreadable JSON ({str(error)[:80]}).") from None
    if is_squad_file(rows):
        rows = squad_rows(rows)
    if not isinstance(rows, list):
        keys = f" with keys {', '.join(map(str, rows))}"[:120] if isinstance(rows, dict) else ""
        raise DataError(
            f"{path} holds one JSON value{keys}; a .json file holds a list of row objects."
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{path}, row {number} is {_kind(row)}, not an object of columns.")
        yield number, row


def _is_row(line: str) -> bool:
    """Whether a line is one row, not a whole data set."""
    try:
        return not is_squad_file(json.loads(line))
    except (ValueError, RecursionError):
        return False


def read_txt(path: Path) -> Numbered:
    """One row per line, in the column `text`; blank lines are skipped."""
    for number, line in _decoded_lines(path):
        if line.strip():
            yield number, {"text": line.rstrip("\r\n")}


def read_csv(path: Path) -> Numbered:
    """Comma-separated with a header line, fields quoted by `"` where necessary."""
    yield from _separated(path, ",", quoting=csv.QUOTE_MINIMAL)


def read_tsv(path: Path) -> Numbered:
    """Tab-separated with a header line.

    Some files use quoting, and in others (GLUE's) a quote is an ordinary character. The file is
    read with quoting if every row is then complete, else without.
    """
    try:
        for _ in _separated(path, "\t", quoting=csv.QUOTE_MINIMAL):
            pass
    except DataError as with_quotes:
        try:
            for _ in _separated(path, "\t", quoting=csv.QUOTE_NONE):
                pass
        except DataError:
            raise with_quotes from None
        yield from _separated(path, "\t", quoting=csv.QUOTE_NONE)
    else:
        yield from _separated(path, "\t", quoting=csv.QUOTE_MINIMAL)


def _separated(path: Path, delimiter: str, *, quoting: Any) -> Numbered:
    limit_before = csv.field_size_limit(FIELD_LIMIT)
    reader = csv.reader(
        (line for _, line in _decoded_lines(path)),
        delimiter=delimiter, quoting=quoting, strict=True,
    )  # fmt: skip
    header: list[str] | None = None
    start = 1
    try:
        for fields in reader:
            if fields and header is None:
                header = _check_header(path, fields, delimiter)
            elif fields and header is not None:
                if len(fields) != len(header):
                    raise DataError(
                        f"{path}:{start} has {len(fields)} fields, the header has {len(header)} "
                        f"({', '.join(header)}). Quote fields that contain "
                        f"{'a comma' if delimiter == ',' else 'a tab'}."
                    )
                yield start, dict(zip(header, fields, strict=True))
            start = reader.line_num + 1
    except csv.Error as error:
        if "field larger" in str(error):
            raise _too_large(f"{path}:{start}", " Is a quote left open?") from None
        raise DataError(
            f"{path}:{start}: malformed {path.suffix.lstrip('.')}, {error}. "
            "Is a quote left open, or not doubled inside a quoted field?"
        ) from None
    finally:
        csv.field_size_limit(limit_before)


def _check_header(path: Path, fields: list[str], delimiter: str) -> list[str]:
    header = [name.strip() for name in fields]
    for name in header:
        if not name:
            raise DataError(f"{path}:1: column {header.index(name) + 1} of the header has no name.")
        if header.count(name) > 1:
            raise DataError(f"{path}:1: the header names column {name!r} twice.")
    other = next((mark for mark in ";\t|," if mark != delimiter and mark in header[0]), None)
    if len(header) == 1 and other:
        names = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}[other]
        raise DataError(
            f"{path}:1: the header is one column, {header[0]!r}: the file seems separated by "
            f"{names}. Write it with {'commas (.csv)' if delimiter == ',' else 'tabs (.tsv)'}."
        )
    return header


def _too_large(where: str, hint: str = "") -> DataError:
    return DataError(f"{where}: one field has more than {FIELD_LIMIT:,} characters.{hint}")


def is_squad_file(content: Any) -> bool:
    """Whether a JSON document is `{"data": [{"paragraphs": [...]}, ...]}`."""
    articles = content.get("data") if isinstance(content, dict) else None
    return (
        isinstance(articles, list)
        and bool(articles)
        and all(isinstance(a, dict) and isinstance(a.get("paragraphs"), list) for a in articles)
    )


def squad_rows(content: Any) -> list[Any]:
    """A row for each question, with its paragraph's context."""
    return [
        {**question, "context": paragraph.get("context"), "title": article.get("title")}
        for article in content["data"]
        for paragraph in article["paragraphs"]
        if isinstance(paragraph, dict)
        for question in paragraph.get("qas", ())
        if isinstance(question, dict)
    ]
