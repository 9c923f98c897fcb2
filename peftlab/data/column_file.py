"""Columns that lie in a file and not in memory: what is streamed may be larger than memory."""

from __future__ import annotations

import contextlib
import tempfile
from collections.abc import Iterator, Mapping
from contextvars import ContextVar
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import pyarrow

_ASKED: ContextVar[bool] = ContextVar("columns_on_disk", default=False)


@contextlib.contextmanager
def columns_on_disk(asked: bool = True) -> Iterator[None]:
    """Have whoever gathers columns meanwhile gather them in files, where `asked`."""
    token = _ASKED.set(asked)
    try:
        yield
    finally:
        _ASKED.reset(token)


def new_columns() -> Columns:
    """Where to gather columns: in memory, or in a file inside `columns_on_disk`."""
    return ColumnFile() if _ASKED.get() else Columns()


class Columns:
    """Batches of columns, gathered in memory."""

    def __init__(self) -> None:
        self._parts: dict[str, list[pyarrow.Array]] = {}

    def add(self, batch: Mapping[str, pyarrow.Array]) -> None:
        """One batch: arrays of one length, the same columns each time."""
        for name, array in batch.items():
            self._parts.setdefault(name, []).append(array)

    def finish(self) -> dict[str, pyarrow.ChunkedArray]:
        """The whole columns; nothing can be added any more."""
        import pyarrow as pa

        return {name: pa.chunked_array(_alike(parts)) for name, parts in self._parts.items()}


class ColumnFile(Columns):
    """Batches of columns, written as they come and mapped into memory in the end.

    The file is in the folder for temporary files (TMPDIR) and has no name once it is mapped: it
    goes with the last that reads it.
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
        # Windows keeps a file that is mapped; there it stays until the system clears up.
        with contextlib.suppress(OSError):
            self._path.unlink()
        return {name: table[name] for name in table.column_names}


def _alike(parts: list[Any]) -> list[Any]:
    """Arrays of one type; lists that were empty throughout take the others'."""
    import pyarrow as pa

    plain = pa.list_(pa.int32())
    kind = next((part.type for part in parts if part.type != plain), plain)
    return [_as(part, kind) for part in parts]


def _as(part: Any, kind: Any) -> Any:
    import pyarrow as pa

    # Arrow casts no list of numbers, be it empty, to a list of objects.
    return part if part.type == kind else pa.array(part.to_pylist(), kind)
