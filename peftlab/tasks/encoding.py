"""From text to token ids: batches through the tokeniser, lengths counted, ids kept in Arrow."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from peftlab.errors import DataError
from peftlab.tasks.task import IGNORED, Encoded, TokenStatistics

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

__all__ = ["IGNORED", "Gathered", "batches_of", "check_truncation", "token_ids"]

logger = logging.getLogger("peftlab")

_BATCH = 1000


def batches_of(rows: datasets.Dataset) -> Iterator[dict[str, list[Any]]]:
    """The rows as lists of columns, a thousand at a time."""
    for start in range(0, len(rows), _BATCH):
        yield rows[start : start + _BATCH]


def token_ids(tokenizer: PreTrainedTokenizerBase, texts: Sequence[str]) -> list[list[int]]:
    """Ids of each text alone: no special tokens added, nothing cut."""
    encoded = tokenizer(
        list(texts), add_special_tokens=False, return_attention_mask=False, verbose=False
    )
    return [list(ids) for ids in encoded["input_ids"]]


def _stored(values: Sequence[Any]) -> Any:
    """The compact Arrow type of a column; None, which is Arrow's own choice, for what is no number.

    Lists that are empty throughout say nothing, and are taken for lists of whole numbers.
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


def _chunked(parts: Sequence[Any]) -> Any:
    """One column of the batches' arrays; lists that were empty take the others' type."""
    import pyarrow as pa

    plain = pa.list_(pa.int32())
    kind = next((part.type for part in parts if part.type != plain), plain)
    # Arrow casts no list of numbers, be it empty, to a list of objects.
    same = (part if part.type == kind else pa.array(part.to_pylist(), kind) for part in parts)
    return pa.chunked_array(list(same))


class Gathered:
    """Collects encoded rows as compact Arrow columns, and counts as it goes."""

    def __init__(self) -> None:
        self._columns: dict[str, list[Any]] = {}
        self._lengths: list[int] = []
        self._rows = self._tokens = self.trained = self.truncated = 0

    def add(
        self,
        columns: Mapping[str, Sequence[Any]],
        *,
        whole_lengths: Iterable[int],
        truncated: int,
        trained: int,
    ) -> None:
        """One batch. `whole_lengths` are lengths before truncation; `trained` counts items."""
        import pyarrow as pa

        for name, values in columns.items():
            self._columns.setdefault(name, []).append(pa.array(values, _stored(values)))
        ids = columns["input_ids"]
        self._rows += len(ids)
        self._tokens += sum(map(len, ids))
        self._lengths.extend(whole_lengths)
        self.trained += trained
        self.truncated += truncated

    def encoded(self) -> Encoded:
        import datasets

        rows = datasets.Dataset.from_dict(
            {name: _chunked(parts) for name, parts in self._columns.items()}
        )
        lengths = np.asarray(self._lengths)
        p50, p95 = np.percentile(lengths, [50, 95], method="higher")
        statistics = TokenStatistics(
            rows=self._rows, truncated=self.truncated, p50=int(p50), p95=int(p95),
            longest=int(lengths.max()), tokens=self._tokens, trained_tokens=self.trained,
        )  # fmt: skip
        return Encoded(rows, statistics)


def check_truncation(
    statistics: TokenStatistics, *, split: str, max_length: int, policy: str
) -> None:
    """Say, refuse or pass over that rows were cut: `policy` is warn, error or silent."""
    if statistics.truncated == 0 or policy == "silent":
        return
    message = (
        f"{split}: {statistics.truncated} rows ({statistics.truncated / statistics.rows:.1%}) are "
        f"longer than data.max_length={max_length} and were cut (median {statistics.p50} tokens, "
        f"95 % below {statistics.p95}, longest {statistics.longest})"
    )
    if policy == "error":
        raise DataError(f"{message}; raise data.max_length, or set data.truncation=warn.")
    logger.warning("%s", message)
