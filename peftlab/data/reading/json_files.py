"""JSON: an array of row objects, an object a line, or SQuAD's articles."""

from __future__ import annotations

import json
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, Record, from_records
from peftlab.data.reading.text_files import decoded_lines
from peftlab.errors import DataError


def open_json(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a JSON document, or of one object a line. Raises `DataError`."""
    return from_records(file.where, lambda: read_json(file), counts_lines=_is_json_lines(file))


def open_jsonl(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a file with one object a line. Raises `DataError`."""
    return from_records(file.where, lambda: read_jsonl(file), counts_lines=True)


def read_jsonl(file: DataFile) -> Numbered:
    """One JSON object per line; blank lines are skipped."""
    for number, line in decoded_lines(file):
        if line.strip():
            yield number, _parse_object(file, number, line)


def _parse_object(file: DataFile, number: int, line: str) -> Record:
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.where}:{number}: malformed JSON, {error.msg} at column {error.colno}. "
            "A jsonl file has one complete object per line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.where}:{number}: unreadable JSON ({str(error)[:80]}).") from None
    if not isinstance(row, dict):
        raise DataError(
            f"{file.where}:{number} holds {_kind(row)}, not an object of columns like "
            '{"text": ..., "label": ...}.'
        )
    return row


def _kind(value: object) -> str:
    return "a list" if isinstance(value, list) else f"the value {value!r:.40}"


def read_json(file: DataFile) -> Numbered:
    """An array of objects, or one object per line, as in many .json files."""
    lines = decoded_lines(file)
    first = next(((number, line) for number, line in lines if line.strip()), None)
    if first is None:
        return
    if first[1].lstrip().startswith("{") and _is_row(first[1]):
        yield first[0], _parse_object(file, *first)
        for number, line in lines:
            if line.strip():
                yield number, _parse_object(file, number, line)
        return
    text = "\n" * (first[0] - 1) + first[1] + "".join(line for _, line in lines)
    try:
        rows = json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.where}:{error.lineno}: malformed JSON, {error.msg} at column {error.colno}."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.where}: unreadable JSON ({str(error)[:80]}).") from None
    if is_squad_file(rows):
        rows = squad_rows(rows)
    if not isinstance(rows, list):
        keys = f" with keys {', '.join(map(str, rows))}"[:120] if isinstance(rows, dict) else ""
        raise DataError(
            f"{file.where} holds one JSON value{keys}; a .json file holds a list of row objects."
        )
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(
                f"{file.where}, row {number} is {_kind(row)}, not an object of columns."
            )
        yield number, row


def _is_row(line: str) -> bool:
    """Whether a line is one row, not a whole data set."""
    try:
        return not is_squad_file(json.loads(line))
    except (ValueError, RecursionError):
        return False


def _is_json_lines(file: DataFile) -> bool:
    start = file.start().removeprefix(b"\xef\xbb\xbf").lstrip()
    return not start.startswith(b"[") and b'"paragraphs"' not in start


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
