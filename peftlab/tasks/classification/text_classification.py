"""Text classification: what is said of a text, or of a pair: a label, several, or a number."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.text_classification import TextClassificationOptions
from peftlab.errors import ConfigError, DataError
from peftlab.model.head_spec import HeadSpec
from peftlab.model.mode import evaluating
from peftlab.tasks.class_weights import class_weights, positive_weights
from peftlab.tasks.classification.label_problems import PROBLEMS, LabelProblem, SingleLabel
from peftlab.tasks.classification.whole_texts import tokenise
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.encoding import Gathered, batches_of, check_rows
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.sources import Splits


@dataclass(frozen=True, slots=True)
class TextClassification(Task):
    """Classes, or a number, for a text; `pairs` tells whether rows have a `text_pair`."""

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
        kind = options.problem
        if kind == "auto":
            kind = "multi_label" if several else "single_label"
        if kind == "regression":
            return cls(PROBLEMS[kind](), pairs)
        names, asked = splits.label_names, options.class_weights
        if names is None or len(names) < (1 if several else 2):
            raise DataError(f"{splits.origin}: a classifier needs labels, of two kinds at least.")
        problem = PROBLEMS[kind](names)
        if asked is None:
            return cls(problem, pairs)
        rows = splits.train["label"]
        labels = [name for row in rows for name in (dict.fromkeys(row) if several else (row,))]
        counts = np.bincount([problem.index(name) for name in labels], minlength=len(names))
        weights = (
            positive_weights(asked, names, counts, len(rows))
            if several
            else class_weights(asked, names, counts)
        )
        return cls(type(problem)(names, weights), pairs)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        # Runs from before there were several problems say nothing of theirs.
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

    def encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        *,
        max_length: int,
        packing: bool = False,
    ) -> Encoded:
        if packing:
            raise ConfigError("data.packing joins plain text, for causal-lm; a label is one row's.")
        gathered = Gathered()
        for batch in batches_of(rows):
            pairs = batch["text_pair"] if self.pairs else None
            columns, lengths = tokenise(tokenizer, batch["text"], pairs, max_length)
            if "label" in batch:
                columns["labels"] = [self.problem.target(label) for label in batch["label"]]
            gathered.add(
                columns,
                whole_lengths=lengths,
                truncated=sum(length > max_length for length in lengths),
                trained=len(lengths),
            )
        return gathered.encoded()

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return PaddingCollator(pad_id_of(tokenizer))

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        """Logits [rows, labels] in fp32."""
        logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
        return logits.float()  # type: ignore[no-any-return]

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        return self.problem.losses(logits, labels, weighted=True).sum()

    def count_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """`loss` is not weighted by class: it is the data's, whatever was trained for."""
        logits = self.logits(model, batch)
        labels = batch["labels"].to(logits.device)
        return {
            "loss": self.problem.losses(logits, labels, weighted=False).cpu().double().numpy(),
            "prediction": self.problem.predictions(logits).cpu().numpy(),
            "label": labels.cpu().numpy(),
        }

    def metrics(self, scores: RowScores) -> dict[str, float]:
        return self.problem.metrics(scores)

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "loss":
            return intervals.ratio_interval(scores["loss"], np.ones(len(scores["loss"])))
        if metric not in self.greater_is_better:
            raise ConfigError(f"{metric!r} is none of {', '.join(self.greater_is_better)}.")
        return self.problem.interval(scores, metric)

    @property
    def asked_role(self) -> str:
        return "text"

    @property
    def untuned_name(self) -> str:
        return self.problem.untuned_name

    def untuned(self, splits: Splits) -> RowScores | None:
        """Every row answered alike: the majority class, or the mean, of the training rows."""
        held_out = splits.test if splits.test is not None else splits.validation
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
        """`{"label", "probability", "probabilities": {name: p}}` for each row.

        `{"labels": [...], "probabilities"}` where rows may have several, `{"value"}` of a number.
        """
        needed = ("text", "text_pair") if self.pairs else ("text",)
        check_rows(rows, needed)
        collate = self.collator(tokenizer)
        device = next(model.parameters()).device
        answers: list[dict[str, Any]] = []
        with evaluating(model), torch.no_grad():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                pairs = [row["text_pair"] for row in part] if self.pairs else None
                columns, _ = tokenise(tokenizer, [row["text"] for row in part], pairs, max_length)
                encoded = [
                    {name: column[index] for name, column in columns.items()}
                    for index in range(len(part))
                ]
                batch = {name: value.to(device) for name, value in collate(encoded).items()}
                answers += map(self.problem.answer, self.logits(model, batch).cpu())
        return answers
