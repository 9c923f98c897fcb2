"""Rows that are mostly unknown tokens: the model would learn from nothing in them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import datasets

logger = logging.getLogger("peftlab")

MOSTLY = 0.5
"""The share of a row's tokens, special ones aside, from which on it is warned of."""

_BATCH = 10_000
_SHOWN = 60


def unknown_shares(rows: datasets.Dataset, tokenizer: Any) -> np.ndarray[Any, Any]:
    """The share of unknown tokens in each encoded row, [rows] in 0 to 1; special ones aside."""
    unknown = tokenizer.unk_token_id
    shares = np.zeros(len(rows))
    if unknown is None:
        return shares
    special = np.asarray([i for i in tokenizer.all_special_ids if i != unknown], dtype=np.int64)
    at = 0
    for batch in rows.select_columns("input_ids").with_format("arrow").iter(batch_size=_BATCH):
        lists = batch["input_ids"].combine_chunks()
        lengths = lists.value_lengths().to_numpy(zero_copy_only=False)
        ids = lists.flatten().to_numpy(zero_copy_only=False)
        row = np.repeat(np.arange(len(lengths)), lengths)
        count = len(lengths)
        read = np.bincount(row, ~np.isin(ids, special), minlength=count)
        lacking = np.bincount(row, ids == unknown, minlength=count)
        shares[at : at + count] = lacking / np.maximum(read, 1)
        at += count
    return shares


def warn_of_unknown(
    split: str, rows: datasets.Dataset, tokenizer: Any, example: Callable[[int], str]
) -> None:
    """Warn where encoded rows are mostly unknown tokens; `example` describes one by its index."""
    shares = unknown_shares(rows, tokenizer)
    mostly = np.flatnonzero(shares > MOSTLY)
    if len(mostly):
        logger.warning(
            "%s: %d of %d rows (%.1f %%) are mostly unknown tokens (%s), such as %s: the "
            "vocabulary of %s lacks their letters or words; use a model for their language",
            split, len(mostly), len(rows), 100 * len(mostly) / len(rows), tokenizer.unk_token,
            example(int(mostly[0])), tokenizer.name_or_path,
        )  # fmt: skip
