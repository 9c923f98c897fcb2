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
    """Pads rows to `input_ids`, `attention_mask` and their other columns, [rows, longest].

    Columns of one number per row become a vector [rows]. Token-wise columns of integers are padded
    with 0, `labels` with -100. Lists of fractions, all of one length, become a matrix. Texts, lists
    of texts and objects stay lists.
    """

    pad_id: int
    side: Literal["left", "right"] = "right"

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        longest = max(len(row["input_ids"]) for row in rows)
        batch: Batch = {}
        for name in rows[0]:
            values = [row[name] for row in rows]
            if not _numeric(values):
                batch[name] = values
            elif isinstance(values[0], list) and any(isinstance(n, float) for n in values[0]):
                batch[name] = torch.tensor(values, dtype=torch.float32)
            elif isinstance(values[0], list):
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


def _numeric(values: Sequence[object]) -> bool:
    """Whether a column holds numbers or lists of numbers."""
    first = next((v[0] for v in values if isinstance(v, list) and v), None)
    first = values[0] if first is None and not isinstance(values[0], list) else first
    return first is None or isinstance(first, int | float)


def pad_id_of(tokenizer: PreTrainedTokenizerBase) -> int:
    """The padding token's id. Raises `CheckFailed` for a tokenizer without one."""
    pad_id = tokenizer.pad_token_id
    if not isinstance(pad_id, int):
        raise CheckFailed(
            f"{tokenizer.name_or_path}: the tokenizer has no padding token, so rows of different "
            "lengths cannot form a batch; set tokenizer.pad_token."
        )
    return pad_id
