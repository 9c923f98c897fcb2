"""What `predict` is asked: words of the command line, lines of a file, or lines of a pipe."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from peftlab.errors import ConfigError, DataError

Row = str | Mapping[str, str]


def rows_to_answer(said: Sequence[str], file: str | None) -> list[Row]:
    """Texts, or rows by column. Raises `ConfigError`, and `DataError` naming file and line."""
    if said and file is not None:
        raise ConfigError("peftlab predict takes texts or --file, not both.")
    if said:
        return list(said)
    if file is not None and file != "-":
        rows = _from_file(Path(file))
        source = file
    elif sys.stdin is None or sys.stdin.isatty():
        raise ConfigError(
            "peftlab predict needs something to answer: texts after RUN, --file, or lines on stdin."
        )
    else:
        rows, source = _lines(_decoded(sys.stdin.buffer.read(), "stdin")), "stdin"
    if not rows:
        raise DataError(f"{source} is empty; there is nothing to answer.")
    return rows


def _from_file(path: Path) -> list[Row]:
    try:
        content = path.read_bytes()
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror}.") from None
    text = _decoded(content, str(path))
    match path.suffix.lower():
        case ".jsonl":
            return [_object(line, f"{path}:{n}") for n, line in _numbered(text)]
        case ".csv" | ".tsv" as kind:
            return _columns(text, path, "," if kind == ".csv" else "\t")
        case ".txt" | "":
            return _lines(text)
        case other:
            raise DataError(f"{path} is {other}; --file reads .txt, .jsonl, .csv and .tsv.")


def _decoded(content: bytes, name: str) -> str:
    try:
        return content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = content.count(b"\n", 0, error.start) + 1
        raise DataError(f"{name}:{line}: is not UTF-8 text.") from None


def _numbered(text: str) -> list[tuple[int, str]]:
    lines = text.replace("\r\n", "\n").split("\n")
    return [(n, line) for n, line in enumerate(lines, start=1) if line.strip()]


def _lines(text: str) -> list[Row]:
    return [line for _, line in _numbered(text)]


def _object(line: str, place: str) -> Row:
    try:
        row = json.loads(line)
    except ValueError as error:
        raise DataError(f"{place}: is not JSON: {error}.") from None
    if isinstance(row, str):
        return row
    if not isinstance(row, dict):
        raise DataError(f"{place}: is neither text nor an object of columns.")
    return {str(key): value for key, value in row.items()}


def _columns(text: str, path: Path, delimiter: str) -> list[Row]:
    reader = csv.DictReader(io.StringIO(text), delimiter=delimiter)
    rows: list[Row] = []
    try:
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{path}:{reader.line_num}: has not as many cells as the header.")
            rows.append(dict(row))
    except csv.Error as error:
        raise DataError(f"{path}:{reader.line_num}: is malformed: {error}.") from None
    return rows
