"""Pad encoded rows into one batch of tensors."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Literal

import torch

from peftlab.errors import CheckFailed
from peftlab.tasks.encoding import IGNORED
from peftlab.tasks.task import Batch

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase


@dataclass(frozen=True, slots=True)
class PaddingCollator:
    """Rows of ids to `input_ids`, `attention_mask` and whatever else they hold, [rows, longest].

    Columns with one number a row become a vector [rows]; token-wise columns are padded with 0,
    `labels` with -100.
    """

    pad_id: int
    side: Literal["left", "right"] = "right"

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: Batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if isinstance(values[0], list):
                fill = {"input_ids": self.pad_id, "labels": IGNORED}.get(name, 0)
                batch[name] = self._pad(values, longest, fill)
            else:
                batch[name] = torch.tensor(values)
        if "attention_mask" not in batch:
            batch["attention_mask"] = self._pad(
                [[1] * len(row["input_ids"]) for row in rows], longest, 0
            )
        return batch

    def _pad(self, values: Sequence[list[int]], longest: int, fill: int) -> torch.Tensor:
        padded = torch.full((len(values), longest), fill, dtype=torch.int64)
        for index, value in enumerate(values):
            ids = torch.tensor(value, dtype=torch.int64)
            if self.side == "right":
                padded[index, : len(ids)] = ids
            else:
                padded[index, longest - len(ids) :] = ids
        return padded


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The id that fills rows up. Raises `CheckFailed` for a tokeniser that has none."""
    pad_id = tokenizer.pad_token_id
    if not isinstance(pad_id, int):
        raise CheckFailed(
            f"{tokenizer.name_or_path}: the tokenizer has no padding token, so rows of different "
            "length cannot form a batch; set tokenizer.pad_token."
        )
    return pad_id
