"""Formats of rows: their columns, and the values that a task gets from each row."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import cast

from peftlab.config import formats as registry
from peftlab.data.formats.row_format import RowFormat

__all__ = ["FORMATS", "RowFormat"]


class _Formats(Mapping[str, RowFormat]):
    """A format by its name, out of the registry of `peftlab.config.formats`."""

    def __getitem__(self, name: str) -> RowFormat:
        return cast("type[RowFormat]", registry.FORMATS[name])()

    def __iter__(self) -> Iterator[str]:
        return iter(registry.format_names())

    def __len__(self) -> int:
        return len(registry.FORMATS)


FORMATS: Mapping[str, RowFormat] = _Formats()
