"""A source of rows as one value: where it is, and how it is read."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from peftlab.config.reader import ReaderConfig


@dataclass(frozen=True, slots=True)
class Source:
    """A file, a folder or a hub data set, as `data` describes it.

    `place` is a path or a hub id, and `subset` one of its configurations; `format` is a row format
    or "auto"; `columns` maps roles to columns, and label to one or several; `split_column` says
    which split a row is of: a column, "auto", or None.
    """

    place: str
    subset: str | None = None
    format: str = "auto"
    columns: Mapping[str, str | Sequence[str]] = field(default_factory=dict)
    reader: ReaderConfig = field(default_factory=ReaderConfig)
    split_column: str | None = "auto"
    weight: float = 1.0
    """The share of its rows where several sources are mixed, relative to those of the others."""
