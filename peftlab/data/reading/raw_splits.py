"""The common form of every source of rows: a name, columns, numbered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from typing import Any

from peftlab.errors import DataError

Record = dict[str, Any]
Numbered = Iterator[tuple[int, Record]]

_PEEKED_ROWS = 100


@dataclass(frozen=True, slots=True)
class RawSplit:
    """One split before its columns are chosen and checked.

    `rows(columns)` starts a new pass that yields `(number, record)`; column stores read the given
    columns only. `class_names` holds the names of ClassLabel columns.
    """

    where: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Numbered]
    counts_lines: bool = False
    all_text: bool = False
    own_keys: bool = False
    """Whether nested objects have the keys of their row alone; Arrow's have those of all rows."""
    class_names: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def head(self, limit: int | None) -> RawSplit:
        """The first `limit` rows; later ones are never read."""
        if limit is None:
            return self
        return replace(self, rows=lambda columns: islice(self.rows(columns), limit))

    def location(self, number: int) -> str:
        return f"{self.where}:{number}" if self.counts_lines else f"{self.where}, row {number}"


def join(parts: Sequence[RawSplit]) -> RawSplit:
    """One split of the shards of one, in their order."""
    first = parts[0]
    if len(parts) == 1:
        return first

    def rows(columns: Sequence[str]) -> Numbered:
        numbered = chain.from_iterable(part.rows(columns) for part in parts)
        return enumerate((row for _, row in numbered), start=1)

    return RawSplit(f"{first.where} and {len(parts) - 1} more shards", first.columns, rows,
                    all_text=first.all_text, own_keys=first.own_keys,
                    class_names=first.class_names)  # fmt: skip


def from_records(
    where: str,
    read: Callable[[], Numbered],
    *,
    counts_lines: bool,
    all_text: bool = False,
    nothing: str = "only blank lines or an empty list",
) -> RawSplit:
    """A split of records that each pass reads anew; its columns are those of the first hundred.

    `nothing`: what a file without rows holds, for the `DataError` that is raised then.
    """
    columns: dict[str, None] = {}
    for _, record in islice(read(), _PEEKED_ROWS):
        columns.update(dict.fromkeys(map(str, record)))
    if not columns:
        raise DataError(f"{where} has no rows ({nothing}).")
    return RawSplit(where, tuple(columns), lambda _: read(), counts_lines,
                    all_text=all_text, own_keys=True)  # fmt: skip


def records(batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
    """The rows of Arrow batches."""
    for batch in batches:
        yield from batch.to_pylist()


def first_line(error: BaseException) -> str:
    """What a library says, in one line of at most 200 characters and without its full stop."""
    return (str(error).strip().splitlines() or [type(error).__name__])[0].rstrip(".")[:200]


def class_names(features: Mapping[str, Any]) -> dict[str, tuple[str, ...]]:
    """The label names of columns of ClassLabels, or of lists of them."""
    from datasets import ClassLabel

    names: dict[str, tuple[str, ...]] = {}
    for column, feature in features.items():
        inner = feature[0] if isinstance(feature, list) and len(feature) == 1 else feature
        inner = getattr(inner, "feature", inner)
        if isinstance(inner, ClassLabel) and inner.names:
            names[column] = tuple(inner.names)
    return names


def from_stream(rows: Any, where: str) -> RawSplit:
    """A split that `datasets` streams: rows are downloaded as they are read."""
    try:
        first = next(iter(rows), None)
    except Exception as error:  # the library and its HTTP client raise many types
        raise DataError(f"{where} cannot be read: {first_line(error)}.") from None
    if first is None:
        raise DataError(f"{where} has no rows.")

    def iterate(columns: Sequence[str]) -> Numbered:
        try:
            for number, row in enumerate(rows, start=1):
                yield number, {name: row[name] for name in columns if name in row}
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{where} cannot be read further: {first_line(error)}.") from None

    return RawSplit(where, tuple(first), iterate, class_names=class_names(rows.features or {}))


def from_dataset(rows: Any, where: str) -> RawSplit:
    """A split that `datasets` has loaded."""
    if len(rows) == 0:
        raise DataError(f"{where} has no rows.")

    def iterate(columns: Sequence[str]) -> Numbered:
        wanted = [name for name in dict.fromkeys(columns) if name in rows.column_names]
        tables = rows.select_columns(wanted).with_format("arrow").iter(batch_size=1000)
        return enumerate(records(tables), start=1)

    return RawSplit(where, tuple(rows.column_names), iterate,
                    class_names=class_names(rows.features))  # fmt: skip
