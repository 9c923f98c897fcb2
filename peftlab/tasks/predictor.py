"""The loop over batches that the tasks' `predict` share."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, TypeVar

import torch
from torch import nn

from peftlab.model.mode import evaluating

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

Item = TypeVar("Item")
Row = dict[str, Any]
"""An encoded row by column, and a batch of them: `Batch` of `tasks.task`, which imports this."""


@dataclass(frozen=True, slots=True)
class Predictor:
    """The arguments of one call of `Task.predict`, and what tasks make of them."""

    model: nn.Module
    tokenizer: PreTrainedTokenizerBase
    max_length: int
    batch_size: int
    generation: Mapping[str, Any] | None

    @contextmanager
    def evaluating(self) -> Iterator[None]:
        """Evaluation mode and no gradient inside."""
        with evaluating(self.model), torch.no_grad():
            yield

    def parts(self, items: Sequence[Item]) -> Iterator[Sequence[Item]]:
        """Consecutive parts of at most `batch_size` items."""
        for start in range(0, len(items), self.batch_size):
            yield items[start : start + self.batch_size]

    def batch(self, rows: Sequence[Row], collate: Callable[[Sequence[Row]], Row]) -> Row:
        """Encoded rows as one batch, its tensors on the model's device."""
        device = next(self.model.parameters()).device
        return {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in collate(rows).items()
        }
