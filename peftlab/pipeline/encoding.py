"""Encoding of a split: rows that the task refuses are named by their place, or left out."""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from peftlab.data.bad_rows import BadRows, Policy, log_dropped
from peftlab.data.column_file import columns_on_disk
from peftlab.tasks.unknown_tokens import warn_of_unknown

if TYPE_CHECKING:
    from peftlab.data.splits import Splits
    from peftlab.tasks.task import Encoded, Task


def encode_split(
    task: Task,
    splits: Splits,
    split: str,
    tokenizer: Any,
    *,
    max_length: int,
    packing: bool,
    on_disk: bool,
    on_bad_rows: Policy,
) -> tuple[Splits, Encoded]:
    """The encoded rows, and the splits without the rows that were left out.

    Raises `DataError` naming file and line of rows that cannot be encoded, unless `on_bad_rows` is
    drop; then where none would be left, or none of a class.
    """
    total, before = len(splits.get(split)), len(splits.dropped)
    while True:
        rows = splits.get(split)
        try:
            with columns_on_disk(on_disk):
                encoded = task.encode(rows, tokenizer, max_length=max_length, packing=packing)
        except BadRows as bad:
            if on_bad_rows == "error":
                raise bad.located(partial(splits.location, split), len(rows)) from None
            splits = splits.without(split, bad.reasons)
            continue
        log_dropped(split, splits.dropped[before:], total)
        warn_of_unknown(split, encoded.rows, tokenizer, partial(_example, splits, split, encoded))
        return splits, encoded


def _example(splits: Splits, split: str, encoded: Encoded, index: int) -> str:
    """Where a row stands, and its beginning; of packed rows the number alone."""
    rows = splits.get(split)
    if "row" in encoded.rows.column_names:  # A window of a row.
        index = int(encoded.rows[index]["row"])
    elif len(rows) != len(encoded.rows):
        return f"encoded row {index + 1}"
    text = next((value for value in rows[index].values() if isinstance(value, str)), "")
    return f"{splits.location(split, index)} ({text!r:.60})"
