"""Counts about checked splits that need no tokeniser."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import datasets

    from peftlab.data.sources import Splits


def label_histogram(rows: datasets.Dataset, label_names: tuple[str, ...]) -> dict[str, int]:
    """Rows of each label, in the labels' order, zeros included."""
    counts = Counter(rows["label"])
    return {name: counts[name] for name in label_names}


def describe_splits(splits: Splits) -> dict[str, Any]:
    """Rows, origin and label histogram of each split; JSON values only."""
    described: dict[str, Any] = {}
    for split in ("train", "validation", "test"):
        rows = getattr(splits, split)
        if rows is None:
            continue
        described[split] = {"rows": len(rows), "from": splits.names[split]}
        if splits.label_names is not None:
            described[split]["labels"] = label_histogram(rows, splits.label_names)
    return described
