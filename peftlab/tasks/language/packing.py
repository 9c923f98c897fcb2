"""Rows packed into sequences of `data.max_length` tokens that do not attend to each other.

A packed row has `position_ids` that restart at each row in it. Without an attention mask,
Transformers treats each restart as a border that attention does not cross (a block-diagonal causal
mask). The first token of each row is not predicted, so the loss does not cross borders either.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.data.column_file import new_columns
from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")

_BATCH = 1000


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Row numbers of each bin by best-fit decreasing: longest rows first, fullest bin first.

    Every length is at most `capacity`. Equal lengths keep their order, so that packing
    is deterministic. At most 11/9 of the fewest bins possible, plus one.
    """
    bins: list[list[int]] = []
    room: list[int] = []  # distinct free rooms, ascending
    open_bins: dict[int, list[int]] = {}
    for row in sorted(range(len(lengths)), key=lambda number: -lengths[number]):
        length = lengths[row]
        at = bisect_left(room, max(length, 1))
        if at == len(room):
            bins.append([row])
            left, number = capacity - length, len(bins) - 1
        else:
            free = room[at]
            number = open_bins[free].pop()
            if not open_bins[free]:
                del open_bins[free]
                room.pop(at)
            bins[number].append(row)
            left = free - length
        if left > 0:
            if left not in open_bins:
                insort(room, left)
            open_bins.setdefault(left, []).append(number)
    return bins


def pack(encoded: Encoded, max_length: int) -> Encoded:
    """The same rows packed: `input_ids`, `labels`, `position_ids`, each at most `max_length` long.

    The statistics stay those of the rows.
    """
    import datasets
    import pyarrow as pa

    ids, starts = _flat(encoded.rows, "input_ids")
    labels, _ = _flat(encoded.rows, "labels")
    lengths = np.diff(starts)
    bins = best_fit(lengths.tolist(), max_length)
    columns = new_columns()
    for first in range(0, len(bins), _BATCH):
        batch = bins[first : first + _BATCH]
        rows = [row for members in batch for row in members]
        joined = {
            "input_ids": _joined(ids, starts, rows),
            "labels": _joined(labels, starts, rows),
            "position_ids": np.concatenate([np.arange(lengths[row]) for row in rows]),
        }
        joined["labels"][joined["position_ids"] == 0] = IGNORED
        ends = np.cumsum([0, *(lengths[members].sum() for members in batch)])
        offsets = pa.array(ends, pa.int32())
        columns.add(
            {
                name: pa.ListArray.from_arrays(offsets, pa.array(values, pa.int32()))
                for name, values in joined.items()
            }
        )
    logger.info(
        "%d rows packed into %d sequences, %.1f %% full",
        len(lengths), len(bins), 100 * len(ids) / (len(bins) * max_length),
    )  # fmt: skip
    return replace(encoded, rows=datasets.Dataset.from_dict(columns.finish()))


def _joined(
    values: np.ndarray[Any, Any], starts: np.ndarray[Any, Any], rows: Sequence[int]
) -> np.ndarray[Any, Any]:
    return np.concatenate([values[starts[row] : starts[row + 1]] for row in rows])


def _flat(rows: datasets.Dataset, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A column of lists as its values and the start of each list."""
    column = rows.with_format("arrow")[:][name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return values, np.concatenate([[0], np.cumsum(lengths)])
