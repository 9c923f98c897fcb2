"""The tables in a JSON document: rows, columns, pandas' orientations, splits inside, wrappers."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.raw_splits import Record
from peftlab.data.reading.split_names import exact_split
from peftlab.errors import DataError

logger = logging.getLogger("peftlab")

Tables = dict[str, Iterable[Record]]

_SPLIT_KEYS = {"columns", "data", "index", "index_names", "column_names"}


def tables_of(document: Any, where: str, options: ReaderConfig, *, row: bool = False) -> Tables:
    """The tables of a document by split; `train` where it holds one table.

    With `row`, an object that is no table is one row. Raises `DataError` for documents that are no
    tables, or several.
    """
    if isinstance(document, dict):
        splits = _splits(document)
        if splits is not None:
            _log_unread(where, document, splits)
            return {name: _table(part, where, options) for name, part in splits.items()}
        if row and not any(isinstance(value, list | dict) for value in document.values()):
            return {"train": [document]}
    return {"train": _table(document, where, options, row=row)}


def _splits(document: Mapping[str, Any]) -> dict[str, Any] | None:
    """The parts of a document whose keys are names of splits, if its tables are only those."""
    parts = {k: v for k, v in document.items() if exact_split(k) and isinstance(v, list | dict)}
    others = [v for k, v in document.items() if k not in parts and _is_rows(v)]
    whole = parts and all(_is_rows(v) or (isinstance(v, dict) and v) for v in parts.values())
    return parts if whole and not others else None


def _table(document: Any, where: str, options: ReaderConfig, *, row: bool = False
           ) -> Iterable[Record]:  # fmt: skip
    if isinstance(document, list):
        return list_rows(document, where, options)
    if not isinstance(document, dict):
        raise DataError(f"{where} holds {kind_of(document)}; a .json file holds a list of rows.")
    if is_squad_file(document):
        return squad_rows(document)
    columns, data = document.get("columns"), document.get("data")
    if isinstance(columns, list) and isinstance(data, list) and document.keys() <= _SPLIT_KEYS:
        return _by_names(columns, data, where)
    if "schema" in document and isinstance(data, list):
        fields = document["schema"].get("fields") if isinstance(document["schema"], dict) else None
        if isinstance(fields, list):
            index = document["schema"].get("primaryKey") or ()
            return ({k: v for k, v in record.items() if k not in index} for record in data)
    wrapped = [key for key, value in document.items() if _is_rows(value)]
    if row and any(_are_turns(document[key]) for key in wrapped):
        return [document]
    lists = {key: len(value) for key, value in document.items() if isinstance(value, list)}
    if len(wrapped) == 1 and len(lists) == 1:
        _log_unread(where, document, wrapped)
        return list_rows(document[wrapped[0]], where, options)
    even = len(lists) == len(document) > 0 and len(set(lists.values())) == 1
    if even and len(wrapped) < len(lists):
        return _by_columns(document)
    if document and all(isinstance(value, dict) and value for value in document.values()):
        return _oriented(document, where)
    if row and len(wrapped) < 2:
        return [document]
    raise DataError(_no_table(document, where, wrapped, lists))


def _no_table(
    document: Mapping[str, Any], where: str, wrapped: Sequence[str], lists: Mapping[str, int]
) -> str:
    keys = ", ".join(map(str, document))[:100]
    if len(wrapped) > 1:
        return (
            f"{where} holds several tables of rows, {', '.join(wrapped)}, which are no names of "
            "splits (train, validation, test); write the one that is meant to a file of its own."
        )
    if len(lists) == len(document) > 1:
        sizes = ", ".join(f"{key}: {count}" for key, count in lists.items())[:100]
        return f"{where} holds columns of different lengths ({sizes}); each row needs all of them."
    return (
        f"{where} holds one JSON value with keys {keys}; a .json file holds a list of row objects, "
        "columns, or splits of them."
    )


def list_rows(rows: Sequence[Any], where: str, options: ReaderConfig) -> Iterator[Record]:
    """A list of row objects; lists of fields where `data.reader.header` says what the first is."""
    if rows and all(isinstance(row, list) for row in rows):
        yield from array_rows(rows, where, options)
        return
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, dict):
            raise DataError(f"{where}, row {number} is {kind_of(row)}, not an object of columns.")
        yield row


def array_rows(rows: Sequence[Any], where: str, options: ReaderConfig) -> Iterator[Record]:
    """Rows that are lists of fields, by names in the first, or by number.

    Raises `DataError` where `data.reader.header` does not say which.
    """
    if options.header == "auto":
        raise DataError(
            f"{where} holds lists of fields, and may or may not begin with their names "
            f"({str(rows[0])[:80]}); set data.reader.header=true if it does, and =false if not: "
            "then columns are called 1, 2, ..."
        )
    if options.header is False:
        return _by_names([str(i + 1) for i in range(len(rows[0]))], rows, where)
    first = 0 if options.header is True else options.header - 1
    return _by_names(rows[first], rows[first + 1 :], where)


def _by_names(names: Sequence[Any], rows: Sequence[Any], where: str) -> Iterator[Record]:
    for number, row in enumerate(rows, start=1):
        if not isinstance(row, list) or len(row) != len(names):
            what = f"{len(row)} fields" if isinstance(row, list) else kind_of(row)
            raise DataError(f"{where}, row {number} has {what}, for {len(names)} columns.")
        yield dict(zip(map(str, names), row, strict=True))


def _by_columns(columns: Mapping[str, Sequence[Any]]) -> Iterator[Record]:
    return (dict(zip(columns, row, strict=True)) for row in zip(*columns.values(), strict=True))


def _oriented(document: Mapping[str, Mapping[str, Any]], where: str) -> Iterable[Record]:
    """Objects in objects: rows by their index, or columns of values by index."""
    outer = list(document)
    inner = list(next(iter(document.values())))
    as_rows = [dict(value) for value in document.values()]
    alike = all(set(value) == set(inner) for value in as_rows)
    as_columns = [{name: document[name][key] for name in outer} for key in inner] if alike else []
    if not alike or (_are_numbers(outer) and not _are_numbers(inner)):
        return as_rows
    if _are_numbers(inner) and not _are_numbers(outer):
        return as_columns
    uniform = [rows for rows in (as_rows, as_columns) if _is_uniform(rows)]
    if len(uniform) == 1:
        return uniform[0]
    raise DataError(
        f"{where} can be read with the columns {', '.join(inner[:4])}, or with "
        f"{', '.join(outer[:4])}; write it as a list of row objects (pandas: orient='records')."
    )


def _are_numbers(keys: Sequence[str]) -> bool:
    return all(key.lstrip("-").isdigit() for key in keys)


def _is_uniform(rows: Sequence[Mapping[str, Any]]) -> bool:
    """Whether each column has values of one type, beside null."""
    kinds: dict[str, set[type]] = {}
    for row in rows:
        for key, value in row.items():
            if value is not None:
                kinds.setdefault(key, set()).add(type(value))
    return all(len(found) == 1 for found in kinds.values())


def _is_rows(value: Any) -> bool:
    return isinstance(value, list) and bool(value) and all(isinstance(v, dict) for v in value)


def _are_turns(value: list[dict[str, Any]]) -> bool:
    """Whether objects are the turns of one conversation, which is one row."""
    return all(turn.keys() & {"role", "from"} for turn in value)


def _log_unread(where: str, document: Mapping[str, Any], read: Iterable[str]) -> None:
    others = [key for key in document if key not in set(read)]
    if others:
        logger.info("%s: rows are read from %s, and %s is left out",
                    where, ", ".join(read), ", ".join(others)[:100])  # fmt: skip


def kind_of(value: object) -> str:
    """What a JSON value is, for messages."""
    if isinstance(value, dict):
        return "an object"
    return "a list" if isinstance(value, list) else f"the value {value!r:.40}"


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
