"""JSON: one object a line, or one document, whichever a file's content is."""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import partial
from itertools import islice
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.encodings import decoded_lines
from peftlab.data.reading.json_forms import array_rows, kind_of, tables_of
from peftlab.data.reading.raw_splits import Numbered, RawSplit, Record, from_records
from peftlab.errors import DataError


def open_json(file: DataFile, options: ReaderConfig) -> RawSplit | Mapping[str, RawSplit]:
    """The rows of a JSON file: an object a line, or the tables of a document.

    Raises `DataError`.
    """
    if _is_lines(file, options):
        return from_records(file.where, partial(_read_lines, file, options), counts_lines=True)
    names = list(_tables(file, options))
    splits = {
        name: from_records(
            file.where if len(names) == 1 else f"{file.where} [{name}]",
            partial(_read_table, file, options, name),
            counts_lines=False,
        )
        for name in names
    }
    return splits if len(names) > 1 else next(iter(splits.values()))


def is_json_lines(file: DataFile) -> bool:
    """Whether the first lines of a file, whatever its name, are each an object."""
    start = file.start().split(b"\n")
    filled = [line for line in start[: None if len(start) == 1 else -1] if line.strip()][:5]
    try:
        return bool(filled) and all(isinstance(json.loads(line), dict) for line in filled)
    except (ValueError, RecursionError):
        return False


def _is_lines(file: DataFile, options: ReaderConfig) -> bool:
    """Whether each line is a value of its own; of a document that is one line, it is not."""
    filled = ((n, line) for n, line in decoded_lines(file, options) if line.strip())
    (_, first), *more = [*islice(filled, 2)] or [(0, "")]
    by_name = file.suffix in (".jsonl", ".ndjson")
    if first.strip() in ("[", "{"):
        return False
    try:
        value = json.loads(first)
    except (ValueError, RecursionError):
        return by_name and not first.lstrip().startswith("[")
    return bool(more) or (by_name and not isinstance(value, list))


def _tables(file: DataFile, options: ReaderConfig) -> dict[str, Any]:
    lines = list(decoded_lines(file, options))
    text = "".join(line for _, line in lines)
    if not text.strip():
        raise DataError(f"{file.where} has no rows (only blank lines or an empty list).")
    one_line = sum(1 for _, line in lines if line.strip()) == 1
    return tables_of(_parse_document(file, text), file.where, options, row=one_line)


def _read_table(file: DataFile, options: ReaderConfig, name: str) -> Numbered:
    return enumerate(_tables(file, options)[name], start=1)


def _parse_document(file: DataFile, text: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg == "Extra data" and (documents := _in_a_row(text)):
            return documents
        raise DataError(f"{file.where}:{error.lineno}: malformed JSON, {_what(error)}.") from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.where}:1: unreadable JSON ({str(error)[:80]}).") from None


def _in_a_row(text: str) -> list[Any] | None:
    """Objects one after the other, over several lines each, as `jq` writes them; else None."""
    decoder = json.JSONDecoder()
    documents: list[Any] = []
    at = 0
    try:
        while rest := text[at:].lstrip()[:1]:
            if rest != "{":
                return None
            at = text.index("{", at)
            document, at = decoder.raw_decode(text, at)
            documents.append(document)
    except (ValueError, RecursionError):
        return None
    return documents


def _read_lines(file: DataFile, options: ReaderConfig) -> Numbered:
    names: list[Any] | None = None
    for number, line in decoded_lines(file, options):
        if not line.strip():
            continue
        value = _parse_line(file, number, line)
        if isinstance(value, dict):
            yield number, value
        elif isinstance(value, list) and (names is not None or options.header != "auto"):
            if names is None and options.header is not False:
                names = value
                continue
            names = names or [str(i + 1) for i in range(len(value))]
            yield number, _row(file, number, names, value)
        elif isinstance(value, list) and number == 1:
            next(array_rows([value], f"{file.where}:{number}", options))
        else:
            raise DataError(
                f"{file.where}:{number} holds {kind_of(value)}, not an object of columns like "
                '{"text": ..., "label": ...}.'
            )


def _row(file: DataFile, number: int, names: list[Any], values: list[Any]) -> Record:
    if len(names) != len(values):
        raise DataError(
            f"{file.where}:{number} holds a list of {len(values)} fields, for {len(names)} columns."
        )
    return dict(zip(map(str, names), values, strict=True))


def _parse_line(file: DataFile, number: int, line: str) -> Any:
    try:
        return json.loads(line)
    except json.JSONDecodeError as error:
        raise DataError(
            f"{file.where}:{number}: malformed JSON, {_what(error)}. "
            "A jsonl file has one complete object per line."
        ) from None
    except (ValueError, RecursionError) as error:
        raise DataError(f"{file.where}:{number}: unreadable JSON ({str(error)[:80]}).") from None


def _what(error: json.JSONDecodeError) -> str:
    """What is wrong and where; some of the library's messages end in `at` already."""
    return f"{error.msg.removesuffix(' at')} at column {error.colno}"
