"""Rows ready for a task: train, validation and test, with their columns and label names."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from peftlab.config.tasks.options import LabelKind
from peftlab.data.bad_rows import BadRows, DroppedRow
from peftlab.errors import DataError

if TYPE_CHECKING:
    import datasets


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
        left = rows.select(np.flatnonzero(kept))
        if len(left) == 0:
            bad = BadRows(reasons).located(lambda at: self.location(split, at), len(rows))
            raise DataError(f"{split}: every row is bad, and none would be left:\n{bad}")
        self._check_classes(split, rows, left)
        dropped = tuple(
            DroppedRow(split, self.location(split, at), why, rows[at])
            for at, why in sorted(reasons.items())
        )
        origins = dict(self.origins)
        if split in origins:
            origins[split] = replace(origins[split], numbers=origins[split].numbers[kept])
        return replace(self, **{split: left}, origins=origins, dropped=(*self.dropped, *dropped))

    def _check_classes(self, split: str, rows: datasets.Dataset, left: datasets.Dataset) -> None:
        """Raise `DataError` where a class of `rows` has none `left`."""
        if self.label_names is None or "label" not in rows.column_names:
            return
        before, after = (
            _classes(part.select_columns("label")[:]["label"]) for part in (rows, left)
        )
        if lost := sorted(before - after):
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


def _classes(labels: Sequence[str | Sequence[str]]) -> set[str]:
    return {name for label in labels for name in ((label,) if isinstance(label, str) else label)}
