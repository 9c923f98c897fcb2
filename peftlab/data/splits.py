"""Rows ready for a task: train, validation and test, with their columns and label names."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING

from peftlab.config.tasks.options import LabelKind
from peftlab.errors import DataError

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class Splits:
    """Rows ready for a task, with the columns that the format gives (see `data.formats`).

    The labels' column (`label`, or `tags`) holds names, lists of names, or numbers, according to
    `label_kind`. `columns` maps the format's roles to the data's columns; `names` are the origins
    of the splits, for messages; `label_names` is None without named labels.
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
