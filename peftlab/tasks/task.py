"""The base class of tasks. A new task is a subclass of `Task` and a class of its options."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

from peftlab.errors import ConfigError

if TYPE_CHECKING:
    import datasets
    import numpy as np
    import torch
    from torch import nn
    from transformers import PreTrainedTokenizerBase

    from peftlab.config.tasks.options import TaskOptions
    from peftlab.data.splits import Splits
    from peftlab.model.head_spec import HeadSpec
    from peftlab.tasks.predictor import Predictor

IGNORED = -100
"""The label of a position that the loss leaves out."""

_MODEL_INPUTS = frozenset({"input_ids", "attention_mask", "token_type_ids", "decoder_input_ids"})

Batch = dict[str, Any]
RowScores = dict[str, "np.ndarray[Any, Any]"]


@dataclass(frozen=True, slots=True)
class TokenStatistics:
    """Lengths of the rows of one split in tokens, before and after encoding."""

    rows: int
    truncated: int
    p50: int
    p95: int
    longest: int
    tokens: int
    trained_tokens: int
    conversations: int = 0
    """How many conversations the rows come from, where that differs; else 0."""


@dataclass(frozen=True, slots=True)
class Encoded:
    """A split of encoded rows, unpadded: `input_ids`, `attention_mask`, `labels`, ...

    `statistics` describe the inputs. `targets` describe the texts to generate, for tasks that
    encode them apart with a limit of their own, `target_limit` tokens.
    """

    rows: datasets.Dataset
    statistics: TokenStatistics
    targets: TokenStatistics | None = None
    target_limit: int = 0


class Task(ABC):
    """One task: encoding, batches, loss, metrics and predictions.

    The loss is a *sum* over items (rows, tokens). The trainer divides it by the item count of the
    whole optimizer step, so the result does not depend on the micro-batch size.
    """

    options: ClassVar[type[TaskOptions]]
    """The task's section of the configuration; it declares metrics, formats and column roles."""

    @property
    def name(self) -> str:
        """The task's name in the configuration."""
        return self.options.tag()

    @property
    def best_metric(self) -> str:
        """The metric that selects the checkpoint where `eval.best` is auto."""
        return self.options.best_metric

    @property
    def greater_is_better(self) -> Mapping[str, bool]:
        """Every metric that the task reports with its options: whether greater is better."""
        return self.options.metrics

    @property
    def measured_by(self) -> Mapping[str, str]:
        """Metrics that other programs compute with variants: the signature of each, for reports."""
        return {}

    @classmethod
    @abstractmethod
    def from_splits(cls, splits: Splits, options: Any) -> Self:
        """The task for these rows and options, an instance of `cls.options`.

        Checks every row and collects what the task depends on, such as label names. Raises
        `DataError`.
        """

    @classmethod
    @abstractmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        """The task that a run folder records; the inverse of `state`."""

    @abstractmethod
    def state(self) -> dict[str, Any]:
        """What a run folder records so that it can evaluate and predict; JSON values only."""

    @abstractmethod
    def head(self) -> HeadSpec:
        """The head that the model needs."""

    def with_settings(self, *, loss: Any, generation: Mapping[str, Any] | None) -> Self:
        """The same task with shared settings, which are not part of `state`.

        They are `train.loss` and `eval.generation`; auto and None for a task that does not read
        them. A task that generates in evaluation stores `generation` and uses it in `score`.
        """
        return self

    def attach(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None) -> Self:
        """The task for one tokenizer and model, before rows are encoded or a method is applied.

        Here a task chooses token ids and may configure the model, which is still the plain base
        (None where rows are only previewed). What it chooses belongs to `state`, so that opening a
        run restores it.
        """
        return self

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        packing: bool = False,
    ) -> Encoded:
        """Tokenise rows. Raises `DataError` where nothing would be trained on."""
        if packing and "data.packing" not in self.options.reads:
            raise ConfigError(
                f"data.packing is true, but {self.name} does not pack rows; set it to false."
            )
        return self._encode(rows, tokenizer, max_length, packing)

    @abstractmethod
    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """`encode` of this task; `packing` is false unless its options read `data.packing`."""

    @abstractmethod
    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        """A function that pads a list of encoded rows into one batch of tensors."""

    @abstractmethod
    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """The loss summed over the batch's items: an fp32 scalar, differentiable."""

    @abstractmethod
    def count_items(self, batch: Batch) -> int:
        """The number of items that `loss_sum` sums over: rows, or predicted tokens."""

    def model_inputs(self, batch: Batch) -> Batch:
        """The part of a batch that the model takes as arguments."""
        return {name: value for name, value in batch.items() if name in _MODEL_INPUTS}

    @abstractmethod
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Evaluate one batch without gradient: arrays of shape [rows, ...] that `metrics` reads.

        Arrays may hold objects (texts, lists), and their width may differ between batches; then
        `metrics` gets one array of arrays. Rows here are encoded rows: a task that splits a row
        into windows keeps the row's number as a column and joins the windows in `metrics`.
        """

    @abstractmethod
    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Metrics over the concatenated scores of a split; always with `loss`."""

    def with_threshold(self, scores: RowScores) -> Self:
        """The task with a threshold chosen on the validation scores after training.

        The threshold belongs to `state`. A task without one returns itself.
        """
        return self

    def as_from_splits(self) -> Self:
        """The task as `from_splits` makes it: without threshold or anything chosen later."""
        return self

    def without_texts(self) -> Self:
        """The task without metrics of generated texts, where generating would take too long."""
        return self

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """A deterministic 95 % interval of one metric. Raises `ConfigError` for an unknown one."""
        if metric not in self.greater_is_better:
            known = ", ".join(self.greater_is_better)
            raise ConfigError(f"metric {metric!r} is unknown to {self.name}, which has {known}.")
        return self._interval(scores, metric)

    @abstractmethod
    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """`interval` for one of `greater_is_better`."""

    def untuned(self, splits: Splits) -> RowScores | None:
        """Scores of a trivial predictor (majority class) on `splits.held_out`.

        None where there are no such rows, or the base model itself is the baseline."""
        return None

    @property
    def untuned_name(self) -> str:
        """The predictor that `untuned` scores."""
        return "majority class"

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        """Token ids whose embeddings adapters train too; known once attached."""
        return ()

    @property
    @abstractmethod
    def input_role(self) -> str:
        """The column role of a bare text given to `predict`."""

    @property
    def stops(self) -> tuple[int, ...]:
        """Tokens at which generation stops, besides the tokenizer's end token."""
        return ()

    @property
    def generation_defaults(self) -> Mapping[str, Any]:
        """Settings of generation that the trained model needs beside its base's, by name."""
        return {}

    def input_row(
        self, text: str, earlier: Sequence[tuple[Mapping[str, Any], Mapping[str, Any]]] = ()
    ) -> dict[str, Any]:
        """A bare text given to `predict` as a row.

        `earlier` are the previous rows of the same interactive session with their answers; a task
        that holds conversations continues them.
        """
        return {self.input_role: text}

    def answer_text(self, answer: Mapping[str, Any]) -> str:
        """One of `predict`'s answers for people: a line, or the generated text."""
        if isinstance(text := answer.get("text"), str):
            return text
        shown = {k: f"{v:.4g}" if isinstance(v, float) else v for k, v in answer.items()}
        return ", ".join(f"{key} {value}" for key, value in shown.items())

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """An encoded row for people: `tokens` (their number), `text` (decoded) and labels.

        Here, `trained` is the text of the tokens that the loss counts, where labels belong to
        tokens. Tasks with other labels override this.
        """
        ids = list(row["input_ids"])
        shown: dict[str, Any] = {"tokens": len(ids), "text": tokenizer.decode(ids)}
        labels = row.get("labels")
        if isinstance(labels, list) and len(labels) == len(ids):
            kept = [i for i, label in zip(ids, labels, strict=True) if label != IGNORED]
            shown["trained"] = tokenizer.decode(kept)
        return shown

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
        """Answers of JSON values, one a row: a label with probabilities, a text, ...

        Rows are as their format gives them, without targets. Raises `DataError` for a row that
        lacks an input. `generation` is for tasks that read `eval.generation`.
        """
        if not rows:
            return []
        from peftlab.tasks.predictor import Predictor

        predictor = Predictor(model, tokenizer, max_length, batch_size, generation)
        with predictor.evaluating():
            return self._answers(rows, predictor)

    @abstractmethod
    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`predict` of this task, in evaluation mode and without gradient."""
