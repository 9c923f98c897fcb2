"""Features kept by row, in memory or in a mapped file that vanishes with the process."""

from __future__ import annotations

import contextlib
import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, overload

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

Row = dict[str, Any]

_IGNORED = -100


@dataclass(slots=True)
class FeatureStore:
    """A flat array of feature vectors [count, H] that rows point into."""

    vectors: torch.Tensor
    path: Path | None = None
    _mapped: Any = field(default=None, repr=False)

    @property
    def mapped(self) -> bool:
        """Whether the vectors lie in a file."""
        return self._mapped is not None

    def close(self) -> None:
        """Let go of the memory, and of the file where it could not be unlinked before."""
        self.vectors = self.vectors.new_empty(0)
        self._mapped = None
        if self.path is not None:
            with contextlib.suppress(OSError):
                self.path.unlink(missing_ok=True)


def allocate(
    count: int, width: int, dtype: torch.dtype, limit: int, folder: Path | None
) -> FeatureStore | None:
    """Room for `count` vectors: in memory up to `limit` bytes, above it in a file in `folder`.

    The file is unlinked as soon as it is mapped, where the system can: it goes with the process,
    however that ends. Returns None where the disk has no room.
    """
    size = count * width * dtype.itemsize
    if size <= limit:
        return FeatureStore(torch.zeros(count, width, dtype=dtype))
    place = folder or Path(tempfile.gettempdir())
    place.mkdir(parents=True, exist_ok=True)
    if shutil.disk_usage(place).free < 1.1 * size:
        return None
    with tempfile.NamedTemporaryFile(
        dir=place, prefix="features-", suffix=".tmp", delete=False
    ) as file:
        file.truncate(size)
        path = Path(file.name)
    # As bytes: numpy knows no bf16.
    mapped = np.memmap(path, dtype=np.uint8, mode="r+", shape=(size,))
    vectors = torch.from_numpy(mapped).view(dtype).view(count, width)
    with contextlib.suppress(OSError):
        path.unlink()
    return FeatureStore(vectors, path if path.exists() else None, mapped)


class FeatureRows(Sequence[Row]):
    """One split's rows with `features` in the place of the base's inputs.

    Classification: features [H], labels, tokens (how many the row had). Causal: features [T, H],
    input_ids [T], labels [T], tokens.
    """

    def __init__(self, store: FeatureStore, starts: Sequence[int], whole: Sequence[Row]) -> None:
        self._store = store
        self._starts = starts
        self._others = whole

    def __len__(self) -> int:
        return len(self._others)

    @overload
    def __getitem__(self, index: int) -> Row: ...

    @overload
    def __getitem__(self, index: slice) -> list[Row]: ...

    def __getitem__(self, index: int | slice) -> Row | list[Row]:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        others = self._others[index]
        start = self._starts[index]
        if "input_ids" in others:
            features = self._store.vectors[start : start + len(others["input_ids"])]
        else:
            features = self._store.vectors[start]
        return {"features": features, **others}


def collate_features(rows: Sequence[Row]) -> Row:
    """Rows of `FeatureRows` -> one batch; token features are padded on the right."""
    tokens = torch.tensor([int(row["tokens"]) for row in rows])
    features = [row["features"] for row in rows]
    if "input_ids" not in rows[0]:
        labels = torch.stack([torch.as_tensor(row["labels"]) for row in rows])
        return {"features": torch.stack(features), "labels": labels, "tokens": tokens}
    lengths = torch.tensor([len(f) for f in features])
    positions = torch.arange(int(lengths.max()))
    return {
        "features": pad_sequence(features, batch_first=True),
        "input_ids": pad_sequence([row["input_ids"] for row in rows], batch_first=True),
        "attention_mask": (positions < lengths[:, None]).long(),
        "labels": pad_sequence(
            [row["labels"] for row in rows], batch_first=True, padding_value=_IGNORED
        ),
        "tokens": tokens,
    }
