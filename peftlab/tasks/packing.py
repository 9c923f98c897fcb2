"""Rows packed into sequences of `data.max_length` tokens without seeing each other.

A packed row has `position_ids` that begin anew with each row in it. Without an attention mask,
Transformers takes a step back in them for a border that attention does not cross (the sequences
are in one mask, block-diagonal and causal). Each row's first token is predicted by nothing, so the
loss does not cross it either.
"""

from __future__ import annotations

import logging
from bisect import bisect_left, insort
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.task import Encoded

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")


def best_fit(lengths: Sequence[int], capacity: int) -> list[list[int]]:
    """Numbers of the rows of each bin, best-fit decreasing: longest rows first, fullest bin first.

    Every length is at most `capacity`. Equal lengths keep their order, so that the same rows are
    always packed alike. At most 11/9 of the fewest bins possible, plus one.
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
    order = np.fromiter((row for rows in bins for row in rows), np.int64, len(lengths))
    taken = np.concatenate([np.arange(starts[row], starts[row + 1]) for row in order])
    firsts = np.concatenate([[0], np.cumsum(lengths[order])[:-1]])
    positions = np.arange(len(taken)) - np.repeat(firsts, lengths[order])
    new_labels = labels[taken]
    new_labels[firsts] = IGNORED
    sizes = [int(lengths[rows].sum()) for rows in bins]
    offsets = np.concatenate([[0], np.cumsum(sizes)])
    columns = {"input_ids": ids[taken], "labels": new_labels, "position_ids": positions}
    logger.info(
        "%d rows packed into %d sequences, %.1f %% full",
        len(lengths), len(bins), 100 * len(taken) / (len(bins) * max_length),
    )  # fmt: skip
    rows = datasets.Dataset.from_dict(
        {
            name: pa.chunked_array(_lists(values.astype(np.int32), offsets))
            for name, values in columns.items()
        }
    )
    return replace(encoded, rows=rows)


def _flat(rows: datasets.Dataset, name: str) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """A column of lists as all of its values, and where each list starts."""
    column = rows.with_format("arrow")[:][name].combine_chunks()
    values = column.flatten().to_numpy(zero_copy_only=False)
    lengths = column.value_lengths().to_numpy(zero_copy_only=False)
    return values, np.concatenate([[0], np.cumsum(lengths)])


_CHUNK = 1000


def _lists(values: np.ndarray[Any, Any], offsets: np.ndarray[Any, Any]) -> Iterator[Any]:
    """Arrow lists in chunks, so that no chunk's offsets leave 32 bits."""
    import pyarrow as pa

    for first in range(0, len(offsets) - 1, _CHUNK):
        part = offsets[first : first + _CHUNK + 1]
        yield pa.ListArray.from_arrays(
            pa.array(part - part[0], pa.int32()), pa.array(values[part[0] : part[-1]])
        )
