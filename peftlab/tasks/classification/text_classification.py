"""Text classification: a label, several labels or a number for a text or a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.text_classification import TextClassificationOptions
from peftlab.data.labels.names import label_histogram
from peftlab.errors import ConfigError, DataError
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks.class_weights import class_weights, positive_weights, warn_of_imbalance
from peftlab.tasks.classification.fp32_answers import fp32_answers
from peftlab.tasks.classification.label_problems import LabelProblem, Regression, SingleLabel
from peftlab.tasks.classification.multi_label import MultiLabel
from peftlab.tasks.classification.whole_texts import tokenise
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.encoding import Gathered, RefusedRows, as_rows, batches_of, check_rows
from peftlab.tasks.positions import positions
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits


PROBLEMS: Mapping[str, type[LabelProblem]] = {
    problem.name: problem for problem in (SingleLabel, MultiLabel, Regression)
}
_PROBLEM_OF = {"one": "single_label", "many": "multi_label", "number": "regression"}


@dataclass(frozen=True, slots=True)
class LabelCollator:
    """A batch whose `labels` are put together by the problem where it does so."""

    padding: PaddingCollator
    problem: LabelProblem

    def __call__(self, rows: Sequence[Batch]) -> Batch:
        if "labels" not in rows[0]:
            return self.padding(rows)
        labels = self.problem.collated([row["labels"] for row in rows])
        if labels is None:
            return self.padding(rows)
        inputs = [{k: v for k, v in row.items() if k != "labels"} for row in rows]
        return self.padding(inputs) | {"labels": labels}


@dataclass(frozen=True, slots=True)
class TextClassification(Task):
    """Classes or a number for a text; `pairs`: whether rows have a `text_pair`."""

    options: ClassVar[type[TextClassificationOptions]] = TextClassificationOptions

    problem: LabelProblem
    pairs: bool = False

    @property
    def best_metric(self) -> str:
        return self.problem.best_metric

    @property
    def greater_is_better(self) -> Mapping[str, bool]:
        return self.problem.metric_names

    @classmethod
    def from_splits(cls, splits: Splits, options: TextClassificationOptions) -> Self:
        pairs = "text_pair" in splits.columns
        several = splits.label_kind == "many"
        kind = _PROBLEM_OF[splits.label_kind] if options.problem == "auto" else options.problem
        if kind == "regression":
            if options.class_weights is not None:
                raise ConfigError(
                    "task.class_weights weighs classes, but the labels are numbers "
                    f"({splits.understood}); leave it out, or set task.problem=single_label."
                )
            return cls(PROBLEMS[kind](), pairs)
        names, setting = splits.label_names, options.class_weights
        if names is None or len(names) < (1 if several else 2):
            raise DataError(f"{splits.origin}: a classifier needs at least two different labels.")
        problem = PROBLEMS[kind](names)
        if setting is None:
            if not several:
                warn_of_imbalance(label_histogram(splits.train, names))
            return cls(problem, pairs)
        rows = splits.train["label"]
        labels = [name for row in rows for name in (dict.fromkeys(row) if several else (row,))]
        index_of = positions(names)
        counts = np.bincount([index_of[name] for name in labels], minlength=len(names))
        weights = (
            positive_weights(setting, names, counts, len(rows))
            if several
            else class_weights(setting, names, counts)
        )
        return cls(type(problem)(names, weights), pairs)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        # Runs written before multi-label and regression existed have no `problem`.
        problem = PROBLEMS[state.get("problem", SingleLabel.name)]
        return cls(problem(tuple(state["label_names"])), pairs=bool(state["pairs"]))

    def state(self) -> dict[str, Any]:
        return {
            "problem": self.problem.name,
            "label_names": list(self.problem.label_names),
            "pairs": self.pairs,
        }

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForSequenceClassification", self.problem.head_config())

    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        gathered, refused = Gathered(), RefusedRows()
        done = 0
        for batch in batches_of(rows):
            with refused.batch(done):
                columns, lengths = self._columns(batch, tokenizer, max_length)
                if "label" in batch:
                    columns["labels"] = self.problem.targets(batch["label"])
                gathered.add(
                    columns,
                    whole_lengths=lengths,
                    truncated=sum(length > max_length for length in lengths),
                    trained=len(lengths),
                )
            done += len(batch["text"])
        refused.raise_any()
        return gathered.encoded()

    def _columns(
        self,
        inputs: Mapping[str, Sequence[Any]],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> tuple[dict[str, list[Any]], list[int]]:
        """Encoded columns of a batch, and each row's uncut length. Raises `BadRows`."""
        pairs = inputs["text_pair"] if self.pairs else None
        return tokenise(tokenizer, inputs["text"], pairs, max_length)

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return LabelCollator(PaddingCollator(pad_id_of(tokenizer)), self.problem)

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Logits [rows, labels] in fp32."""
        inputs = {name: value for name, value in batch.items() if name != "labels"}
        with fp32_answers(model) if self.problem.fp32_answers else nullcontext():
            logits: torch.Tensor = model(**inputs).logits
        return logits.float()

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        return self.problem.losses(logits, labels, weighted=True).sum()

    def count_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """`loss` is not weighted by class, so that runs with different weights compare."""
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        predictions = self.problem.predictions(logits)
        return {
            "loss": self.problem.losses(logits, labels, weighted=False).cpu().double().numpy(),
            "prediction": predictions.cpu().numpy(),
            "label": labels.to(predictions.dtype).cpu().numpy(),
        }

    def metrics(self, scores: RowScores) -> dict[str, float]:
        return self.problem.metrics(scores)

    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "loss":
            return intervals.ratio_interval(scores["loss"], np.ones(len(scores["loss"])))
        return self.problem.interval(scores, metric)

    @property
    def input_role(self) -> str:
        return "text"

    @property
    def untuned_name(self) -> str:
        return self.problem.untuned_name

    def untuned(self, splits: Splits) -> RowScores | None:
        """A constant prediction: the training rows' majority class or mean."""
        held_out = splits.held_out
        return None if held_out is None else self.problem.untuned(splits.train, held_out)

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        ids = list(row["input_ids"])
        shown = self.problem.shown(row["labels"])
        return {"tokens": len(ids), "text": tokenizer.decode(ids), "label": shown}

    def answer_text(self, answer: Mapping[str, Any]) -> str:
        if "value" in answer:
            return f"{answer['value']:.4g}"
        if "labels" in answer:
            named = [f"{name} {answer['probabilities'][name]:.1%}" for name in answer["labels"]]
            return ", ".join(named) or "no label"
        return f"{answer['label']} {answer['probability']:.1%}"

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`{"label", "probability", "probabilities": {name: p}}` for each row.

        `{"labels": [...], "probabilities"}` for multi-label problems, `{"value"}` for regression.
        """
        needed = ("text", "text_pair") if self.pairs else ("text",)
        check_rows(rows, needed)
        return [self.problem.answer(logits) for logits in self._row_logits(rows, needed, predictor)]

    def _row_logits(
        self, rows: Sequence[Mapping[str, Any]], roles: Sequence[str], predictor: Predictor
    ) -> Iterator[torch.Tensor]:
        """Logits [labels] of each row, on the CPU; `roles` are the columns to encode."""
        collate = self.collator(predictor.tokenizer)
        done, refused = 0, RefusedRows()
        for part in predictor.parts(rows):
            inputs = {role: [row[role] for row in part] for role in roles}
            with refused.batch(done):
                columns, _ = self._columns(inputs, predictor.tokenizer, predictor.max_length)
            refused.raise_any()
            done += len(part)
            batch = predictor.batch(as_rows(columns), collate)
            yield from self.logits(predictor.model, batch).cpu()
