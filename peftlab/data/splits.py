"""Rows ready for a task: train, validation and test, with their columns and label names."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from peftlab.config.tasks.options import LabelKind
from peftlab.data.bad_rows import BadRows, DroppedRow
from peftlab.errors import DataError

if TYPE_CHECKING:
    import datasets
    import pyarrow

Mask = NDArray[np.bool_]

_LARGEST_COPY = 1 << 30
"""Bytes of a split that is copied to leave rows out; a larger one may be in a file."""


@dataclass(frozen=True, slots=True)
class Origin:
    """Where the rows of a split stand: their `numbers` [rows] in a source that `locate` names."""

    locate: Callable[[int], str]
    numbers: NDArray[np.int64]

    def location(self, index: int) -> str:
        """The file and line, or the source and row, of a row."""
        return self.locate(int(self.numbers[index]))


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows ready for a task, with the columns that the format gives (see `data.formats`).

    The labels' column (`label`, or `tags`) holds names, lists of names, or numbers, according to
    `label_kind`. `columns` maps the format's roles to the data's columns; `names` are the origins
    of the splits, for messages; `label_names` is None without named labels. `origins` has the place
    of every row, and `dropped` the rows that were left out.
    """

    train: datasets.Dataset
    validation: datasets.Dataset | None
    test: datasets.Dataset | None
    origin: str
    names: Mapping[str, str]
    columns: Mapping[str, str]
    label_names: tuple[str, ...] | None
    format: str
    label_kind: LabelKind = "one"
    understood: str = ""
    """What the labels were taken for, in one line; empty without labels."""
    origins: Mapping[str, Origin] = field(default_factory=dict)
    dropped: tuple[DroppedRow, ...] = ()
    names_declared: bool = False
    """Whether the order of `label_names` is that of their declaration."""

    def location(self, split: str, index: int) -> str:
        """Where a row of a split stands, for messages."""
        origin = self.origins.get(split)
        return f"{split}, row {index + 1}" if origin is None else origin.location(index)

    def without(self, split: str, reasons: Mapping[int, str]) -> Splits:
        """The splits without these rows of one of them, which are recorded as dropped.

        Raises `DataError` where no row would be left, or none of a class.
        """
        rows = self.get(split)
        kept = np.ones(len(rows), dtype=bool)
        kept[list(reasons)] = False
        if not kept.any():
            bad = BadRows(reasons).located(lambda at: self.location(split, at), len(rows))
            raise DataError(f"{split}: every row is bad, and none would be left:\n{bad}")
        self._check_classes(split, rows, kept)
        out = rows[sorted(reasons)]
        dropped = tuple(
            DroppedRow(
                split, self.location(split, at), reasons[at], dict(zip(out, row, strict=True))
            )
            for at, row in zip(sorted(reasons), zip(*out.values(), strict=True), strict=True)
        )
        origins = dict(self.origins)
        if split in origins:
            origins[split] = replace(origins[split], numbers=origins[split].numbers[kept])
        left = {split: _select(rows, kept)}
        return replace(self, **left, origins=origins, dropped=(*self.dropped, *dropped))

    def _check_classes(self, split: str, rows: datasets.Dataset, kept: Mask) -> None:
        """Raise `DataError` where a class has no row that is `kept`."""
        import pyarrow as pa

        if self.label_names is None or "label" not in rows.column_names:
            return
        labels = rows.select_columns("label").with_format("arrow")[:]["label"]
        if lost := sorted(_classes(labels) - _classes(labels.filter(pa.array(kept)))):
            raise DataError(
                f"{split}: every row with the label {lost[0]!r:.40} would be left out; correct "
                "such a row, or take them all out of the source."
            )

    @property
    def held_out(self) -> datasets.Dataset | None:
        """The rows to report on: test, else validation."""
        return self.validation if self.test is None else self.test

    def get(self, split: str) -> datasets.Dataset:
        """The split `train`, `validation` or `test`. Raises `DataError` where it is missing."""
        rows = {"train": self.train, "validation": self.validation, "test": self.test}
        if split not in rows:
            raise DataError(f"unknown split {split!r}; the splits are train, validation and test.")
        chosen = rows[split]
        if chosen is None:
            raise DataError(
                f"{self.origin} has no {split} split; name one with data.splits.{split}=..."
            )
        return chosen


def _select(rows: datasets.Dataset, kept: Mask) -> datasets.Dataset:
    """The rows that are kept: copied, since reading through indices is several times slower."""
    import datasets
    import pyarrow as pa

    if rows.data.nbytes > _LARGEST_COPY:
        return rows.select(np.flatnonzero(kept))
    columns = rows.with_format("arrow")[:]
    mask = pa.array(kept)
    return datasets.Dataset.from_dict({n: columns[n].filter(mask) for n in columns.column_names})


def _classes(labels: pyarrow.ChunkedArray) -> set[str]:
    """The names in a column of labels, or of lists of them."""
    import pyarrow as pa
    import pyarrow.compute as pc

    lists = pa.types.is_list(labels.type) or pa.types.is_large_list(labels.type)
    return set(pc.unique(pc.list_flatten(labels) if lists else labels).to_pylist())
