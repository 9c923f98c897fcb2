"""What a task is: a new one is one file with one subclass of `Task`, and one with its options."""

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

    from peftlab.config.tasks.options import TaskOptions
    from peftlab.data.sources import Splits
    from peftlab.model.head_spec import HeadSpec

IGNORED = -100
"""Label of a position that is not trained on."""

_MODEL_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"})

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
    """A split as the model reads it: `input_ids`, `attention_mask`, `labels`, ..., unpadded.

    `targets` are statistics of the texts to write, where those are apart from what is read
    (`statistics`) and have a limit of their own, `target_limit` tokens.
    """

    rows: datasets.Dataset
    statistics: TokenStatistics
    targets: TokenStatistics | None = None
    target_limit: int = 0


class Task(ABC):
    """One task: how rows become batches, what the loss sums, what is measured, what is answered.

    The loss is a *sum* over items (rows, tokens); the trainer divides it by the item count of the
    whole optimizer step, so that it is the same however the step is cut into micro-batches.
    """

    options: ClassVar[type[TaskOptions]]
    """The task's part of the configuration, which names its metrics, formats and roles."""

    @property
    def name(self) -> str:
        """As the configuration names the task."""
        return self.options.tag()

    @property
    def best_metric(self) -> str:
        """The metric that chooses where the configuration leaves it open."""
        return self.options.best_metric

    @property
    def greater_is_better(self) -> Mapping[str, bool]:
        """Every metric that this task, with its options, reports: whether greater is better."""
        return self.options.metrics

    @classmethod
    @abstractmethod
    def from_splits(cls, splits: Splits, options: Any) -> Self:
        """Check every row and learn what the task must know (label names). Raises `DataError`.

        `options` is of the class `cls.options`.
        """

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

    def with_settings(self, *, loss: Any, generation: Mapping[str, Any] | None) -> Self:
        """The same task with shared settings that it reads, and that do not belong to `state`.

        `loss` is `train.loss`, `generation` `eval.generation`: None, and auto, for a task that does
        not name the key in its `TaskOptions.reads`. A task that generates in evaluation keeps
        `generation` here and reads it in `score`.
        """
        return self

    def attach(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None) -> Self:
        """The task for one tokenizer and model, before rows are encoded or a method is applied.

        Here a task chooses ids of the vocabulary and may tell the model of them, which is as it was
        loaded, without a method on it (None where rows are only looked at). What it learns goes
        into `state`: when a run is opened, the task is as `from_state` made it.
        """
        return self

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

    def model_inputs(self, batch: Batch) -> Batch:
        """What of a batch the model is called with for its logits."""
        return {name: value for name, value in batch.items() if name in _MODEL_INPUTS}

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Evaluate one batch without gradient: arrays of shape [rows, ...] that `metrics` reads.

        Arrays of objects (texts, lists) and of another width in every batch are fine: the latter
        come to `metrics` as one array of arrays. Rows here are encoded rows: a task that makes
        several of one (windows) hands its number along as a column, and joins them in `metrics`.
        """

    @abstractmethod
    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Metrics over the concatenated scores of a split; always with `loss`."""

    def settled(self, scores: RowScores) -> Self:
        """The task with what is chosen on the scores of validation once training is over.

        A threshold, for instance. It goes into `state`.
        """
        return self

    def unsettled(self) -> Self:
        """The task without what `settled` chose: as it is made from the data alone."""
        return self

    def without_texts(self) -> Self:
        """The task as it is measured by forward passes alone, where generating takes too long."""
        return self

    @abstractmethod
    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """A 95 % interval of one metric, from the scores; the same at every call."""

    @abstractmethod
    def untuned(self, splits: Splits) -> RowScores | None:
        """Scores on test of knowing nothing (majority class); None: evaluate the base model."""

    @property
    def untuned_name(self) -> str:
        """What `untuned` scores, in words."""
        return "majority class"

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        """Ids whose embeddings mean nothing yet: adapters train them too. Known once attached."""
        return ()

    @property
    @abstractmethod
    def asked_role(self) -> str:
        """The column that a bare text given to `predict` stands for."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens, beside the tokenizer's own end token, at which the trained model stops."""
        return ()

    def asked(
        self, text: str, earlier: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    ) -> dict[str, Any]:
        """A bare text given to `predict` as a row.

        `earlier` are the rows asked before in the same interactive session with their answers;
        a task that holds conversations puts them in front.
        """
        return {self.asked_role: text}

    def answer_text(self, answer: Mapping[str, Any]) -> str:
        """One of `predict`'s answers as people read it: a line, or the text that was generated."""
        if isinstance(text := answer.get("text"), str):
            return text
        return ", ".join(f"{key} {_shown(value)}" for key, value in answer.items())

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """An encoded row as people read it: `tokens` (how many), `text` (decoded) and more.

        Here: of `labels` that belong to tokens, `trained`, the pieces whose prediction the loss
        counts. A task shows its own labels instead.
        """
        ids = list(row["input_ids"])
        shown: dict[str, Any] = {"tokens": len(ids), "text": tokenizer.decode(ids)}
        labels = row.get("labels")
        if isinstance(labels, list) and len(labels) == len(ids):
            kept = [i for i, label in zip(ids, labels, strict=True) if label != IGNORED]
            shown["trained"] = tokenizer.decode(kept)
        return shown

    @abstractmethod
    def predict(
        self,
        model: nn.Module,
        tokenizer: PreTrainedTokenizerBase,
        rows: Sequence[Mapping[str, Any]],
        *,
        max_length: int,
        batch_size: int,
        generation: Mapping[str, Any] | None = None,
    ) -> list[dict[str, Any]]:
        """Readable answers, one a row, of JSON values: a label with probabilities, a text, ...

        Rows are as their format gives them, without targets. Raises `DataError` where one lacks
        what the task reads. `generation` is given to tasks that read `eval.generation`.
        """


def _shown(value: Any) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
