"""Files of Arrow's columns: parquet."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from peftlab.config.reader import ReaderConfig
from peftlab.data.reading.data_file import DataFile
from peftlab.data.reading.raw_splits import Numbered, RawSplit, class_names, first_line, records
from peftlab.errors import DataError


def open_parquet(file: DataFile, _: ReaderConfig) -> RawSplit:
    """The rows of a parquet file. Raises `DataError`."""
    import pyarrow
    from datasets import Features
    from pyarrow import parquet

    try:
        # An explicit handle: pyarrow's keeps the file open as long as its error exists.
        with file.open_seekable() as stream, parquet.ParquetFile(stream) as opened:
            schema = opened.schema_arrow
            count = opened.metadata.num_rows
    except pyarrow.ArrowException as error:
        raise DataError(
            f"{file.where} is not a readable parquet file: {first_line(error)}."
        ) from None
    if count == 0:
        raise DataError(f"{file.where} has no rows.")
    try:
        features: Mapping[str, Any] = Features.from_arrow_schema(schema)
    except (ValueError, TypeError, KeyError):
        features = {}

    def rows(columns: Sequence[str]) -> Numbered:
        wanted = [name for name in dict.fromkeys(columns) if name in schema.names]
        try:
            with file.open_seekable() as stream, parquet.ParquetFile(stream) as opened:
                yield from enumerate(records(opened.iter_batches(1000, columns=wanted)), start=1)
        except pyarrow.ArrowException as error:
            raise DataError(f"{file.where} cannot be read: {first_line(error)}.") from None

    return RawSplit(file.where, tuple(schema.names), rows, class_names=class_names(features))
