"""Counts about checked splits that need no tokeniser."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import datasets


def label_histogram(rows: datasets.Dataset, label_names: tuple[str, ...]) -> dict[str, int]:
    """Rows (of tags: tokens) of each label, in the labels' order, zeros included."""
    column = "tags" if "tags" in rows.column_names else "label"
    labels = rows.select_columns(column)[:][column]
    counts = Counter(
        name for label in labels for name in ((label,) if isinstance(label, str) else label)
    )
    return {name: counts[name] for name in label_names}
