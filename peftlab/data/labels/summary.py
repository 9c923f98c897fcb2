"""What was understood of a source's labels, in one line whose counts add up to its rows."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping
from typing import TYPE_CHECKING

from peftlab.data.labels.names import label_histogram

if TYPE_CHECKING:
    import datasets

    from peftlab.data.labels.spelling.form import LabelForm

_SHOWN = 6


def summary(
    train: datasets.Dataset, form: LabelForm, names: tuple[str, ...] | None, column: str
) -> str:
    """One line on the training rows: the form, and how many rows each label has.

    Of several labels a row, the rows are counted by how many they have; of tags, the tokens.
    """
    rows = len(train)
    source = f"column {column!r}, {form.spelling}"
    if form.kind == "number":
        values = train["label"]
        return (
            f"labels: one number a row ({source}): {min(values):g} to {max(values):g}, mean "
            f"{sum(values) / rows:.4g}; {rows:,} training rows"
        )
    assert names is not None
    counts = label_histogram(train, names)
    if "tags" in train.column_names:
        tags = [tag for row in train["tags"] for tag in row]
        without = tags.count(None)
        ignored = f", without a tag {without:,}" if without else ""
        return (
            f"labels: a tag a token ({source}), {len(names):,} tags: {_most(counts)}{ignored}; "
            f"{len(tags):,} tokens in {rows:,} training rows"
        )
    if form.kind == "one":
        return (
            f"labels: one of {len(names):,} a row ({source}): {_most(counts)}; {rows:,} training "
            "rows"
        )
    sizes = Counter(map(len, train["label"]))
    by_size = ", ".join(f"{size} on {n:,}" for size, n in sorted(sizes.items())[:_SHOWN])
    more = sum(n for _, n in sorted(sizes.items())[_SHOWN:])
    by_size += f", more on {more:,}" if more else ""
    return (
        f"labels: any number of {len(names):,} a row ({source}): {by_size} of {rows:,} training "
        f"rows; {_most(counts)}"
    )


def _most(counts: Mapping[str, int]) -> str:
    """The counts, in the labels' order; of many labels the most frequent, then the others' sum."""
    if len(counts) <= _SHOWN + 2:
        return ", ".join(f"{name:.40} {count:,}" for name, count in counts.items())
    ranked = sorted(counts.items(), key=lambda item: -item[1])
    others = ranked[_SHOWN:]
    shown = ", ".join(f"{name:.40} {count:,}" for name, count in ranked[:_SHOWN])
    return f"{shown}, {len(others):,} others {sum(count for _, count in others):,}"
