"""The common form of every source of rows: a name, columns, numbered rows."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from pathlib import Path
from typing import Any

from peftlab.data.reading.text_files import (
    Numbered,
    read_csv,
    read_json,
    read_jsonl,
    read_tsv,
    read_txt,
)
from peftlab.errors import DataError

TEXT_READERS: Mapping[str, Callable[[Path], Numbered]] = {
    ".json": read_json,
    ".jsonl": read_jsonl,
    ".ndjson": read_jsonl,
    ".csv": read_csv,
    ".tsv": read_tsv,
    ".txt": read_txt,
}
EXTENSIONS = (*TEXT_READERS, ".parquet")

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


def open_files(paths: Sequence[Path]) -> RawSplit:
    """A split from one file, or from the shards of one."""
    parts = [_open_file(path) for path in paths]
    if len(parts) == 1:
        return parts[0]

    def rows(columns: Sequence[str]) -> Numbered:
        numbered = chain.from_iterable(part.rows(columns) for part in parts)
        return enumerate((row for _, row in numbered), start=1)

    first = parts[0]
    return RawSplit(f"{first.where} and {len(parts) - 1} more shards", first.columns, rows,
                    all_text=first.all_text, own_keys=first.own_keys,
                    class_names=first.class_names)  # fmt: skip


def _open_file(path: Path) -> RawSplit:
    suffix = path.suffix.lower()
    if suffix not in EXTENSIONS:
        raise DataError(
            f"{path}: peftlab does not read {suffix or 'files without an extension'!r}; "
            f"it reads {', '.join(EXTENSIONS)}."
        )
    try:
        if path.stat().st_size == 0:
            raise DataError(f"{path} is empty (0 bytes).")
        return _open_parquet(path) if suffix == ".parquet" else _open_text(path, suffix)
    except OSError as error:
        raise DataError(f"{path} cannot be read: {error.strerror or error}.") from None


def _open_text(path: Path, suffix: str) -> RawSplit:
    reader = TEXT_READERS[suffix]
    columns: dict[str, None] = {}
    for _, record in islice(reader(path), _PEEKED_ROWS):
        columns.update(dict.fromkeys(map(str, record)))
    if not columns:
        what = (
            "only a header" if suffix in (".csv", ".tsv") else "only blank lines or an empty list"
        )
        raise DataError(f"{path} has no rows ({what}).")
    counts_lines = suffix != ".json" or _is_json_lines(path)
    return RawSplit(str(path), tuple(columns), lambda _: reader(path), counts_lines,
                    all_text=suffix in (".csv", ".tsv", ".txt"), own_keys=True)  # fmt: skip


def _is_json_lines(path: Path) -> bool:
    with path.open("rb") as file:
        start = file.read(1 << 16).removeprefix(b"\xef\xbb\xbf").lstrip()
    return not start.startswith(b"[") and b'"paragraphs"' not in start


def _open_parquet(path: Path) -> RawSplit:
    import pyarrow
    from datasets import Features
    from pyarrow import parquet

    try:
        # An explicit handle: pyarrow's keeps the file open as long as its error exists.
        with path.open("rb") as file, parquet.ParquetFile(file) as opened:
            schema = opened.schema_arrow
            count = opened.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(f"{path} is not a readable parquet file: {_first_line(error)}.") from None
    if count == 0:
        raise DataError(f"{path} has no rows.")
    try:
        features: Mapping[str, Any] = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):
        features = {}

    def rows(columns: Sequence[str]) -> Numbered:
        wanted = [name for name in dict.fromkeys(columns) if name in schema.names]
        try:
            with path.open("rb") as file, parquet.ParquetFile(file) as opened:
                yield from enumerate(_records(opened.iter_batches(1000, columns=wanted)), start=1)
        except pyarrow.ArrowException as error:
            raise DataError(f"{path} cannot be read: {_first_line(error)}.") from None

    return RawSplit(str(path), tuple(schema.names), rows, class_names=class_names(features))


def _records(batches: Iterator[Any]) -> Iterator[dict[str, Any]]:
    for batch in batches:
        yield from batch.to_pylist()


def _first_line(error: BaseException) -> str:
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
        raise DataError(f"{where} cannot be read: {_first_line(error)}.") from None
    if first is None:
        raise DataError(f"{where} has no rows.")

    def iterate(columns: Sequence[str]) -> Numbered:
        try:
            for number, row in enumerate(rows, start=1):
                yield number, {name: row[name] for name in columns if name in row}
        except DataError:
            raise
        except Exception as error:
            raise DataError(f"{where} cannot be read further: {_first_line(error)}.") from None

    return RawSplit(where, tuple(first), iterate, class_names=class_names(rows.features or {}))


def from_dataset(rows: Any, where: str) -> RawSplit:
    """A split that `datasets` has loaded."""
    if len(rows) == 0:
        raise DataError(f"{where} has no rows.")

    def iterate(columns: Sequence[str]) -> Numbered:
        wanted = [name for name in dict.fromkeys(columns) if name in rows.column_names]
        tables = rows.select_columns(wanted).with_format("arrow").iter(batch_size=1000)
        return enumerate(_records(tables), start=1)

    return RawSplit(where, tuple(rows.column_names), iterate,
                    class_names=class_names(rows.features))  # fmt: skip
