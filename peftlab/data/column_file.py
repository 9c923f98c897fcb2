"""Columns in memory or in a file: streamed data may be larger than memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_ON_DISK: ContextVar[bool] = ContextVar("columns_on_disk", default=False)


@contextlib.contextmanager
def columns_on_disk(enabled: bool = True) -> Iterator[None]:
    """Inside, `new_columns` gathers in files where `enabled`."""
    token = _ON_DISK.set(enabled)
    try:
        yield
    finally:
        _ON_DISK.reset(token)


def new_columns() -> Columns:
    """A collector of columns: in memory, or in a file inside `columns_on_disk`."""
    return ColumnFile() if _ON_DISK.get() else Columns()


class Columns:
    """Batches of columns, gathered in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[pyarrow.Array]] = {}

    def add(self, batch: Mapping[str, pyarrow.Array]) -> None:
        """Add one batch: arrays of one length, the same columns each time."""
        for name, array in batch.items():
            self._parts.setdefault(name, []).append(array)

    def finish(self) -> dict[str, pyarrow.ChunkedArray]:
        """The complete columns; nothing can be added after."""
        import pyarrow as pa

        return {name: pa.chunked_array(_alike(parts)) for name, parts in self._parts.items()}


class ColumnFile(Columns):
    """Batches of columns, written as they come and memory-mapped at the end.

    The file is in the folder for temporary files (TMPDIR). It is unlinked once it is mapped, and so
    removed with its last reader.
    """

    def __init__(self) -> None:
        super().__init__()
        self._path: Path | None = None
        self._writer: Any = None
        self._schema: Any = None

    def add(self, batch: Mapping[str, pyarrow.Array]) -> None:
        import pyarrow as pa

        if self._writer is None:
            with tempfile.NamedTemporaryFile(
                prefix="peftlab-rows-", suffix=".arrow", delete=False
            ) as made:
                self._path = Path(made.name)
            self._schema = pa.schema([(name, array.type) for name, array in batch.items()])
            self._writer = pa.ipc.new_file(str(self._path), self._schema)
        arrays = [_as(batch[name], self._schema.field(name).type) for name in self._schema.names]
        self._writer.write_batch(pa.record_batch(arrays, schema=self._schema))

    def finish(self) -> dict[str, pyarrow.ChunkedArray]:
        import pyarrow as pa

        if self._writer is None or self._path is None:
            return {}
        self._writer.close()
        table = pa.ipc.open_file(pa.memory_map(str(self._path))).read_all()
        # Windows does not delete a mapped file; there it stays in the temporary folder.
        with contextlib.suppress(OSError):
            self._path.unlink()
        return {name: table[name] for name in table.column_names}


def _alike(parts: list[Any]) -> list[Any]:
    """Arrays of one type; columns of empty lists take the type of the others."""
    import pyarrow as pa

    plain = pa.list_(pa.int32())
    kind = next((part.type for part in parts if part.type != plain), plain)
    return [_as(part, kind) for part in parts]


def _as(part: Any, kind: Any) -> Any:
    import pyarrow as pa

    # Arrow cannot cast a list of numbers, even an empty one, to a list of objects.
    return part if part.type == kind else pa.array(part.to_pylist(), kind)
