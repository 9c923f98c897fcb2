"""Text classification: one label for a text or for a pair of texts."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from peftlab.config.tasks.text_classification import TextClassificationOptions
from peftlab.errors import ConfigError, DataError
from peftlab.model.head_spec import HeadSpec
from peftlab.tasks import intervals
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.encoding import Gathered, batches_of
from peftlab.tasks.prediction import check_rows, evaluating
from peftlab.tasks.task import Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.sources import Splits


@dataclass(frozen=True, slots=True)
class TextClassification(Task):
    """Cross-entropy over `label_names`; `pairs` tells whether rows have a `text_pair`."""

    options: ClassVar[type[TextClassificationOptions]] = TextClassificationOptions

    label_names: tuple[str, ...]
    pairs: bool = False

    @classmethod
    def from_splits(cls, splits: Splits, options: TextClassificationOptions) -> Self:
        if splits.label_names is None or len(splits.label_names) < 2:
            raise DataError(f"{splits.origin}: a classifier needs labels, of two kinds at least.")
        return cls(splits.label_names, pairs="text_pair" in splits.columns)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(tuple(state["label_names"]), pairs=bool(state["pairs"]))

    def state(self) -> dict[str, Any]:
        return {"label_names": list(self.label_names), "pairs": self.pairs}

    def head(self) -> HeadSpec:
        return HeadSpec(
            "AutoModelForSequenceClassification",
            {
                "num_labels": len(self.label_names),
                "id2label": dict(enumerate(self.label_names)),
                "label2id": {name: index for index, name in enumerate(self.label_names)},
                "problem_type": "single_label_classification",
            },
        )

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
        index_of = {name: index for index, name in enumerate(self.label_names)}
        gathered = Gathered()
        for batch in batches_of(rows):
            pairs = batch["text_pair"] if self.pairs else None
            columns, lengths = _tokenise(tokenizer, batch["text"], pairs, max_length)
            if "label" in batch:
                columns["labels"] = [self._index(index_of, name) for name in batch["label"]]
            gathered.add(
                columns,
                whole_lengths=lengths,
                truncated=sum(length > max_length for length in lengths),
                trained=len(lengths),
            )
        return gathered.encoded()

    def _index(self, index_of: Mapping[str, int], name: str) -> int:
        if name not in index_of:
            raise DataError(
                f"label {name!r} is not one the task knows ({', '.join(self.label_names[:20])})."
            )
        return index_of[name]

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return PaddingCollator(pad_id_of(tokenizer))

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = _logits(model, batch)
        return F.cross_entropy(logits, batch["labels"].to(logits.device), reduction="sum")

    def count_items(self, batch: Batch) -> int:
        return len(batch["labels"])

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        logits = _logits(model, batch)
        labels = batch["labels"].to(logits.device)
        losses = F.cross_entropy(logits, labels, reduction="none")
        return {
            "loss": losses.cpu().double().numpy(),
            "prediction": logits.argmax(dim=-1).cpu().numpy(),
            "label": labels.cpu().numpy(),
        }

    def metrics(self, scores: RowScores) -> dict[str, float]:
        from sklearn.metrics import accuracy_score, f1_score

        label, prediction = scores["label"], scores["prediction"]
        return {
            "accuracy": float(accuracy_score(label, prediction)),
            "f1_macro": float(f1_score(label, prediction, average="macro", zero_division=0)),
            "f1_micro": float(f1_score(label, prediction, average="micro", zero_division=0)),
            "loss": float(scores["loss"].mean()),
        }

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "loss":
            return intervals.ratio_interval(scores["loss"], np.ones(len(scores["loss"])))
        if metric not in self.greater_is_better:
            raise ConfigError(f"{metric!r} is none of {', '.join(self.greater_is_better)}.")
        label, prediction = scores["label"], scores["prediction"]
        if metric == "f1_macro":
            return intervals.confusion_interval(label, prediction, intervals.f1_macro)
        # With one label a row, micro F1 is the accuracy.
        return intervals.share_interval(int((label == prediction).sum()), len(label))

    @property
    def asked_role(self) -> str:
        return "text"

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        return {**Task.preview(self, row, tokenizer), "label": self.label_names[row["labels"]]}

    def untuned(self, splits: Splits) -> RowScores | None:
        """The most frequent training label for every row, with the training rows' shares."""
        index_of = {name: index for index, name in enumerate(self.label_names)}
        held_out = splits.test if splits.test is not None else splits.validation
        if held_out is None:
            return None
        counts = np.bincount(
            [index_of[name] for name in splits.train["label"]], minlength=len(self.label_names)
        )
        # A label that train lacks has no share; one row's stands in, so that the loss is finite.
        shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        label = np.asarray([index_of[name] for name in held_out["label"]])
        prediction = np.full(len(label), counts.argmax())
        return {"label": label, "prediction": prediction, "loss": -np.log(shares[label])}

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
        """`{"label", "probability", "probabilities": {name: p}}` for each row."""
        needed = ("text", "text_pair") if self.pairs else ("text",)
        check_rows(rows, needed)
        collate = self.collator(tokenizer)
        device = next(model.parameters()).device
        answers: list[dict[str, Any]] = []
        with evaluating(model), torch.no_grad():
            for start in range(0, len(rows), batch_size):
                part = rows[start : start + batch_size]
                pairs = [row["text_pair"] for row in part] if self.pairs else None
                columns, _ = _tokenise(tokenizer, [row["text"] for row in part], pairs, max_length)
                encoded = [
                    {name: column[index] for name, column in columns.items()}
                    for index in range(len(part))
                ]
                batch = {name: value.to(device) for name, value in collate(encoded).items()}
                answers += map(self._answer, _logits(model, batch).softmax(dim=-1).tolist())
        return answers

    def _answer(self, probabilities: list[float]) -> dict[str, Any]:
        named = dict(zip(self.label_names, probabilities, strict=True))
        label = max(named, key=named.__getitem__)
        return {"label": label, "probability": named[label], "probabilities": named}


def _tokenise(
    tokenizer: PreTrainedTokenizerBase,
    texts: Sequence[str],
    pairs: Sequence[str] | None,
    max_length: int,
) -> tuple[dict[str, Any], list[int]]:
    """Columns of ids cut to `max_length`, and each row's length before that."""

    def call(indices: Sequence[int], **options: Any) -> dict[str, list[list[int]]]:
        first = [texts[index] for index in indices]
        second = None if pairs is None else [pairs[index] for index in indices]
        encoded = tokenizer(first, second, verbose=False, **options)
        return {name: list(map(list, values)) for name, values in encoded.items()}

    def redo(indices: list[int], **options: Any) -> None:
        if indices:
            for name, values in call(indices, **options).items():
                if name not in columns:
                    continue
                for index, value in zip(indices, values, strict=True):
                    columns[name][index] = value

    columns: dict[str, Any] = call(range(len(texts)))
    # Models that read the answer at </s> (T5) need the same number of them in every row, but a
    # text may spell one out; there it is read as plain characters.
    ends = tokenizer.eos_token_id
    plain = {}
    if isinstance(ends, int) and columns["input_ids"] and columns["input_ids"][0][-1:] == [ends]:
        expected = 1 + (pairs is not None and _pair_ends(tokenizer, ends))
        spelt = [i for i, ids in enumerate(columns["input_ids"]) if ids.count(ends) != expected]
        redo(spelt, split_special_tokens=True)
        plain = dict.fromkeys(spelt)
    if not _has_token_types(tokenizer, pairs is not None):
        columns.pop("token_type_ids", None)
    lengths = [len(ids) for ids in columns["input_ids"]]
    long = [index for index, length in enumerate(lengths) if length > max_length]
    cut = {"truncation": True, "max_length": max_length}
    redo([index for index in long if index not in plain], **cut)
    redo([index for index in long if index in plain], **cut, split_special_tokens=True)
    if min(map(len, columns["input_ids"])) == 0:
        text = next(t for t, ids in zip(texts, columns["input_ids"], strict=True) if not ids)
        raise DataError(f"the tokenizer makes no token of the text {text!r:.60}.")
    return columns, lengths


def _has_token_types(tokenizer: PreTrainedTokenizerBase, pairs: bool) -> bool:
    """Generic tokenisers return token types for any model; all zero, they say nothing."""
    types = tokenizer("a", "a" if pairs else None).get("token_type_ids", [])
    return any(types)


def _pair_ends(tokenizer: PreTrainedTokenizerBase, ends: int) -> int:
    return int(tokenizer("a", "a")["input_ids"].count(ends)) - 1


def _logits(model: nn.Module, batch: Batch) -> torch.Tensor:
    """Logits [rows, labels] in fp32."""
    logits = model(**{name: value for name, value in batch.items() if name != "labels"}).logits
    return logits.float()  # type: ignore[no-any-return]
