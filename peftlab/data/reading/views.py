"""Views of a split: some of its rows, and nested values as columns."""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from typing import Any

from peftlab.data.reading.raw_splits import Numbered, RawSplit
from peftlab.errors import DataError

_PEEKED_ROWS = 100


def rows_between(raw: RawSplit, start: int, stop: int) -> RawSplit:
    """The rows from `start` up to `stop`, counted from 0."""

    def rows(columns: Sequence[str]) -> Numbered:
        return islice(raw.rows(columns), start, stop)

    return replace(raw, rows=rows)


def rows_where(raw: RawSplit, column: str, value: object) -> RawSplit:
    """The rows that have `value` in a column, without that column."""

    def rows(columns: Sequence[str]) -> Numbered:
        for number, record in raw.rows([*columns, column]):
            if record.get(column) == value:
                yield number, record

    others = tuple(name for name in raw.columns if name != column)
    return replace(raw, columns=others, rows=rows)


def count_rows(raw: RawSplit) -> int:
    """The number of rows, by reading one column."""
    return sum(1 for _ in raw.rows(raw.columns[:1]))


def with_paths(raw: RawSplit, paths: Mapping[str, str]) -> RawSplit:
    """The split with a column for each path into nested values, as `meta.text` or `turns.0.text`.

    `paths` are columns by role; those that the split has itself stay. A name along a list is taken
    of each item, a number of the item at that place. Raises `DataError` for a path that the first
    rows do not have.
    """
    steps = {path: _steps(path, raw.columns) for path in paths.values()}
    nested = {path: way for path, way in steps.items() if way is not None}
    if not nested:
        return raw

    def rows(columns: Sequence[str]) -> Numbered:
        wanted = [nested[name][0] if name in nested else name for name in columns]
        for number, record in raw.rows(list(dict.fromkeys(wanted))):
            found = {name: _at(record, nested[name]) for name in columns if name in nested}
            yield number, {**record, **found}

    for role, path in paths.items():
        if path in nested:
            _check(raw, role, path, nested[path])
    return replace(raw, columns=(*raw.columns, *nested), rows=rows)


def _steps(path: str, columns: Sequence[str]) -> list[str] | None:
    """A path's column and what follows it; None for a column, and where there is none."""
    if path in columns:
        return None
    parts = path.split(".")
    for length in range(len(parts) - 1, 0, -1):
        head = ".".join(parts[:length])
        if head in columns:
            return [head, *parts[length:]]
    return None


def _at(value: Any, steps: Sequence[str]) -> Any:
    for place, step in enumerate(steps):
        if isinstance(value, str):
            value = _parsed(value)
        if isinstance(value, Mapping):
            value = value.get(step)
        elif isinstance(value, list) and step.isdecimal():
            value = value[int(step)] if int(step) < len(value) else None
        elif isinstance(value, list):
            return [_at(item, steps[place:]) for item in value]
        else:
            return None
    return value


def _parsed(text: str) -> Any:
    """The value of JSON text, as cells of a csv file have it."""
    if text.lstrip()[:1] not in ("{", "["):
        return None
    try:
        return json.loads(text)
    except ValueError:
        return None


def _check(raw: RawSplit, role: str, path: str, steps: Sequence[str]) -> None:
    rows: Iterable[tuple[int, Mapping[str, Any]]] = raw.rows([steps[0]])
    tops = [record.get(steps[0]) for _, record in islice(rows, _PEEKED_ROWS)]
    if any(_has(_at({steps[0]: top}, steps)) for top in tops):
        return
    first = next((top for top in tops if top is not None), None)
    first = _parsed(first) if isinstance(first, str) else first
    first = first[0] if isinstance(first, list) and first else first
    inside = f"it has {', '.join(map(str, first))}" if isinstance(first, Mapping) else (
        "it is not an object"
    )  # fmt: skip
    raise DataError(
        f"{raw.where}: column {steps[0]!r} has no {'.'.join(steps[1:])!r} "
        f"(data.columns.{role}={path}); {inside[:200]}."
    )


def _has(value: Any) -> bool:
    return any(map(_has, value)) if isinstance(value, list) else value is not None
