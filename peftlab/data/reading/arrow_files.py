"""Files of Arrow's columns: parquet, arrow (its file and its stream format) and feather."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, BinaryIO

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, class_names, first_line, records
from peftlab.errors import DataError

_ROWS = 1000
_OLD_FEATHER = b"FEA1"
_ARROW_FILE = b"ARROW1"

Batches = Callable[[BinaryIO, list[str]], Iterator[Any]]


def open_parquet(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a parquet file. Raises `DataError`."""
    from pyarrow import parquet

    def schema(stream: BinaryIO) -> tuple[Any, bool]:
        with parquet.ParquetFile(stream) as opened:
            return opened.schema_arrow, opened.metadata.num_rows > 0

    def batches(stream: BinaryIO, columns: list[str]) -> Iterator[Any]:
        with parquet.ParquetFile(stream) as opened:
            yield from opened.iter_batches(_ROWS, columns=columns)

    return _open(file, "parquet", schema, batches)


def open_arrow(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of an arrow or a feather file. Raises `DataError`."""
    import pyarrow as pa

    if file.start(4) == _OLD_FEATHER:
        raise DataError(
            f"{file.where} is feather of version 1, which pyarrow no longer writes; save it anew "
            "(pyarrow.feather.write_feather), or as parquet."
        )
    is_file = file.start(6) == _ARROW_FILE

    def schema(stream: BinaryIO) -> tuple[Any, bool]:
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        parts = _parts(reader, is_file)
        return reader.schema, any(part.num_rows for part in parts)

    def batches(stream: BinaryIO, columns: list[str]) -> Iterator[Any]:
        reader = pa.ipc.open_file(stream) if is_file else pa.ipc.open_stream(stream)
        for part in _parts(reader, is_file):
            selected = part.select(columns)
            for start in range(0, selected.num_rows, _ROWS):
                yield selected.slice(start, _ROWS)

    return _open(file, "arrow", schema, batches)


def _parts(reader: Any, is_file: bool) -> Iterator[Any]:
    if is_file:
        return (reader.get_batch(i) for i in range(reader.num_record_batches))
    return iter(reader)


def _open(
    file: DataFile, kind: str, schema_of: Callable[[BinaryIO], tuple[Any, bool]], batches: Batches
) -> RawSplit:
    import pyarrow
    from datasets import Features

    broken = (pyarrow.ArrowException, OSError)
    try:
        # An explicit handle: pyarrow's keeps the file open as long as its error exists.
        with file.open_seekable() as stream:
            schema, has_rows = schema_of(stream)
    except broken as error:
        raise DataError(
            f"{file.where} is not a readable {kind} file: {first_line(error)}."
        ) from None
    if not has_rows:
        raise DataError(f"{file.where} has no rows.")
    doubled = next((name for name in schema.names if schema.names.count(name) > 1), None)
    if doubled is not None:
        raise DataError(f"{file.where} has two columns named {doubled!r}.")
    try:
        features: Mapping[str, Any] = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):
        features = {}

    def rows(columns: Sequence[str]) -> Numbered:
        wanted = [name for name in dict.fromkeys(columns) if name in schema.names]
        try:
            with file.open_seekable() as stream:
                yield from enumerate(records(batches(stream, wanted)), start=1)
        except broken as error:
            raise DataError(f"{file.where} cannot be read: {first_line(error)}.") from None

    return RawSplit(file.where, tuple(schema.names), rows, class_names=class_names(features))
