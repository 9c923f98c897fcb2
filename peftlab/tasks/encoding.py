"""Rows checked and tokenised in batches: lengths counted, ids stored in Arrow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.data.bad_rows import BadRows
from peftlab.data.column_file import new_columns
from peftlab.errors import DataError
from peftlab.tasks.task import IGNORED, Encoded, TokenStatistics

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = [
    "IGNORED",
    "Gathered",
    "RefusedRows",
    "as_rows",
    "batches_of",
    "check_rows",
    "check_truncation",
    "token_ids",
    "token_statistics",
]

logger = logging.getLogger("peftlab")

_BATCH = 1000


def batches_of(rows: datasets.Dataset) -> Iterator[dict[str, list[Any]]]:
    """Columns of a thousand rows at a time."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def as_rows(columns: Mapping[str, Sequence[Any]]) -> list[dict[str, Any]]:
    """Columns of one length as one mapping a row."""
    return [
        dict(zip(columns, values, strict=True)) for values in zip(*columns.values(), strict=True)
    ]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text, without special tokens and without truncation."""
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _stored(values: Sequence[Any]) -> Any:
    """The compact Arrow type of a column of numbers; None, Arrow's own choice, for others.

    A column of empty lists is stored as lists of integers.
    """
    import pyarrow as pa

    nested = len(values) > 0 and isinstance(values[0], list)
    items = (v[0] for v in values if v) if nested else iter(values)
    probe = next(items, 0)
    if isinstance(probe, float):
        return pa.list_(pa.float32()) if nested else pa.float64()
    if isinstance(probe, int):
        return pa.list_(pa.int32()) if nested else pa.int64()
    return None


def check_rows(rows: Sequence[Mapping[str, Any]], needed: Sequence[str]) -> None:
    """Raise `DataError` for a row to predict that lacks a text which the task reads."""
    for number, row in enumerate(rows, start=1):
        for role in needed:
            if not isinstance(row.get(role), str) or not row[role].strip():
                raise DataError(
                    f"row {number} to predict has no {role!r}; each row needs {', '.join(needed)}."
                )


class RefusedRows:
    """Rows that cannot be encoded, gathered over the batches of a split."""

    def __init__(self) -> None:
        self._reasons: dict[int, str] = {}

    @contextmanager
    def batch(self, done: int) -> Iterator[None]:
        """Collects the `BadRows` of a batch that `done` rows came before."""
        try:
            yield
        except BadRows as bad:
            self._reasons |= {done + index: why for index, why in bad.reasons.items()}

    def raise_any(self) -> None:
        """Raise `BadRows` where any batch had some."""
        if self._reasons:
            raise BadRows(self._reasons)


class Gathered:
    """Collects encoded rows as compact Arrow columns, with their statistics."""

    def __init__(self) -> None:
        self._columns = new_columns()
        self._lengths: list[int] = []
        self._rows = self._tokens = self.trained = self.truncated = 0
        self.conversations = 0
        """Set where rows are fewer conversations than rows."""

    def add(
        self,
        columns: Mapping[str, Sequence[Any]],
        *,
        whole_lengths: Iterable[int],
        truncated: int,
        trained: int,
    ) -> None:
        """Add one batch. `whole_lengths` are untruncated lengths; `trained` counts items."""
        import pyarrow as pa

        self._columns.add({n: pa.array(values, _stored(values)) for n, values in columns.items()})
        ids = columns["input_ids"]
        self._rows += len(ids)
        self._tokens += sum(map(len, ids))
        self._lengths.extend(whole_lengths)
        self.trained += trained
        self.truncated += truncated

    def leave_out(self, whole_lengths: Sequence[int]) -> None:
        """Count rows of these lengths that are dropped because they are too long."""
        self._rows += len(whole_lengths)
        self._lengths.extend(whole_lengths)
        self.truncated += len(whole_lengths)

    def encoded(self) -> Encoded:
        import datasets

        rows = datasets.Dataset.from_dict(self._columns.finish())
        statistics = token_statistics(
            self._lengths, rows=self._rows, truncated=self.truncated, tokens=self._tokens,
            trained=self.trained,
        )  # fmt: skip
        if self.conversations:
            statistics = replace(statistics, conversations=self.conversations)
        return Encoded(rows, statistics)


def token_statistics(
    whole_lengths: Sequence[int], *, rows: int, truncated: int, tokens: int, trained: int
) -> TokenStatistics:
    """Statistics from untruncated lengths; `tokens` and `trained` count after truncation."""
    lengths = np.asarray(whole_lengths)
    p50, p95 = np.percentile(lengths, [50, 95], method="higher")
    return TokenStatistics(
        rows=rows, truncated=truncated, p50=int(p50), p95=int(p95), longest=int(lengths.max()),
        tokens=tokens, trained_tokens=trained,
    )  # fmt: skip


def check_truncation(
    statistics: TokenStatistics,
    *,
    split: str,
    max_length: int,
    policy: str,
    key: str = "data.max_length",
) -> None:
    """Report truncated rows: `policy` is warn, error or silent; `key` is what sets `max_length`."""
    if statistics.truncated == 0 or policy == "silent":
        return
    message = (
        f"{split}: {statistics.truncated} rows ({statistics.truncated / statistics.rows:.1%}) are "
        f"longer than {key}={max_length} and were cut (median {statistics.p50} tokens, "
        f"95 % below {statistics.p95}, longest {statistics.longest})"
    )
    if policy == "error":
        raise DataError(f"{message}; raise {key}, or set data.truncation=warn.")
    logger.warning("%s", message)
