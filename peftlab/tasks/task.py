"""What a task is: a new one is one file with one subclass of `Task`, and its name in the schema."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.sources import Splits
    from peftlab.model.head_spec import HeadSpec

Batch = dict[str, Any]
RowScores = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """What encoding did to the rows of one split, in tokens."""

    rows: int
    truncated: int
    p50: int
    p95: int
    longest: int
    tokens: int
    trained_tokens: int


@dataclass(frozen=True, slots=True)
class Encoded:
    """A split as the model reads it: `input_ids`, `attention_mask`, `labels`, ..., unpadded."""

    rows: datasets.Dataset
    statistics: TokenStatistics


class Task(ABC):
    """One task: how rows become batches, what the loss sums, what is measured, what is answered.

    The loss is a *sum* over items (rows, tokens); the trainer divides it by the item count of the
    whole optimizer step, so that it is the same however the step is cut into micro-batches.
    """

    name: ClassVar[str]
    roles: ClassVar[Mapping[str, bool]]
    """Column roles this task reads, each with whether it is required."""
    best_metric: ClassVar[str]
    greater_is_better: ClassVar[Mapping[str, bool]]
    """Every metric the task reports, each with its direction."""

    @classmethod
    @abstractmethod
    def from_splits(cls, splits: Splits) -> Self:
        """Check every row and learn what the task must know (label names). Raises `DataError`."""

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The task as a run folder recorded it; the inverse of `state`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a run folder must record to evaluate and predict later; JSON values only."""

    @abstractmethod
    def head(self) -> HeadSpec:
        """The head that the model needs."""

    @abstractmethod
    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        packing: bool = False,
    ) -> Encoded:
        """Tokenise rows. Raises `DataError` where nothing would be trained on."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        """Pads a list of encoded rows into one batch of tensors."""

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss summed over the batch's items, fp32 scalar, differentiable."""

    @abstractmethod
    def count_items(self, batch: Batch) -> int:
        """How many items `loss_sum` sums over: rows, or tokens that are predicted."""

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Evaluate one batch without gradient: arrays of shape [rows] that `metrics` reads."""

    @abstractmethod
    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Metrics over the concatenated scores of a split; always with `loss`."""

    @abstractmethod
    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """A 95 % interval of one metric, from the scores; the same at every call."""

    @abstractmethod
    def untuned(self, splits: Splits) -> RowScores | None:
        """Scores on test of knowing nothing (majority class); None: evaluate the base model."""

    @property
    @abstractmethod
    def asked_role(self) -> str:
        """The column that a bare text given to `predict` stands for."""

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, str]],
        *,
        max_length: int,
        batch_size: int,
        generation: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Readable answers, one a row: a label with probabilities, or generated text."""
