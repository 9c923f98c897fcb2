"""Token classification: a tag for each word, and the spans that the tags mark."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from peftlab.config.tasks.token_classification import TokenClassificationOptions
from peftlab.errors import DataError
from peftlab.model.head_spec import HeadSpec, label_config
from peftlab.tasks.class_weights import class_weights
from peftlab.tasks.collate import PaddingCollator, pad_id_of
from peftlab.tasks.encoding import Gathered, as_rows, batches_of
from peftlab.tasks.positions import positions
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.statistics import intervals
from peftlab.tasks.tagging.tag_rows import TagRows, encoded_rows
from peftlab.tasks.tagging.tag_spans import OUTSIDE, SpanCounts, has_spans, span_types, spans_of
from peftlab.tasks.tagging.word_pieces import Words
from peftlab.tasks.task import IGNORED, Batch, Encoded, RowScores, Task

if TYPE_CHECKING:
    import datasets
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits


@dataclass(frozen=True, slots=True)
class TokenClassification(Task):
    """Cross-entropy over `tags` at one token of each word.

    Long rows are split into windows. A word's tag counts in the window with the most context around
    it, so no word is cut off. `prefixed` tags mark spans.
    """

    options: ClassVar[type[TokenClassificationOptions]] = TokenClassificationOptions

    tags: tuple[str, ...]
    prefixed: bool
    label_piece: Literal["first", "last"] = "first"
    stride: int | Literal["auto"] = "auto"
    weights: tuple[float, ...] | None = None

    @property
    def greater_is_better(self) -> Mapping[str, bool]:
        of_types = {f"f1/{kind}": True for kind in span_types(self.tags, prefixed=self.prefixed)}
        return {**self.options.metrics, **of_types}

    @classmethod
    def from_splits(cls, splits: Splits, options: TokenClassificationOptions) -> Self:
        tags = splits.label_names
        if tags is None or len(tags) < 2:
            raise DataError(f"{splits.origin}: tagging needs at least two different tags.")
        prefixed = has_spans(tags, options.scheme, splits.origin)
        weights = None
        if options.class_weights is not None:
            index_of = {tag: index for index, tag in enumerate(tags)}
            counts = np.bincount(
                [index_of[tag] for row in splits.train["tags"] for tag in row if tag is not None],
                minlength=len(tags),
            )
            weights = class_weights(options.class_weights, tags, counts)
        return cls(tags, prefixed, options.label_piece, options.stride, weights)

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        return cls(
            tuple(state["tags"]), bool(state["prefixed"]), state["label_piece"], state["stride"]
        )

    def state(self) -> dict[str, Any]:
        return {
            "tags": list(self.tags),
            "prefixed": self.prefixed,
            "label_piece": self.label_piece,
            "stride": self.stride,
        }

    def head(self) -> HeadSpec:
        return HeadSpec("AutoModelForTokenClassification", label_config(self.tags))

    def _encode(
        self,
        rows: datasets.Dataset,
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
        packing: bool,
    ) -> Encoded:
        """One or more windows per row, with the row's number and the labelled tokens' words.

        `unread`, in a row's first window, is JSON of the [word, tag] pairs of words without tokens.
        """
        gathered = Gathered()
        done = 0
        for batch in batches_of(rows):
            tags = [self._indices(row) for row in batch["tags"]]
            encoded = encoded_rows(
                [Words.joined(words) for words in batch["tokens"]], tags, tokenizer,
                max_length=max_length, stride=self.stride, which=self.label_piece, first_row=done,
            )  # fmt: skip
            done += len(tags)
            trained = sum(label != IGNORED for row in encoded.columns["labels"] for label in row)
            gathered.add(
                encoded.columns, whole_lengths=encoded.lengths, truncated=0, trained=trained
            )
        if gathered.trained == 0:
            raise DataError("the tokenizer produces no token for any word: every label is masked.")
        return gathered.encoded()

    def _indices(self, row: Sequence[str | None]) -> list[int]:
        """The tags' indices, `IGNORED` for a word without a tag."""
        index_of = positions(self.tags)
        unknown = next((tag for tag in row if tag is not None and tag not in index_of), None)
        if unknown is not None:
            known = ", ".join(self.tags[:20])
            raise DataError(f"tag {unknown!r} is unknown; the task has {known}.")
        return [IGNORED if tag is None else index_of[tag] for tag in row]

    @property
    def _outside(self) -> int:
        """The index of `O`; -1 where the data has no such tag."""
        return self.tags.index(OUTSIDE) if OUTSIDE in self.tags else -1

    def collator(self, tokenizer: PreTrainedTokenizerBase) -> Callable[[Sequence[Batch]], Batch]:
        return PaddingCollator(pad_id_of(tokenizer))

    def _logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits: torch.Tensor = model(**self.model_inputs(batch)).logits
        return logits.float()

    def _losses(self, logits: torch.Tensor, labels: torch.Tensor, weighted: bool) -> torch.Tensor:
        """The loss of each position [B, T], zero without a label."""
        weights = self.weights if weighted else None
        weight = None if weights is None else torch.tensor(weights, device=logits.device)
        return F.cross_entropy(
            logits.transpose(1, 2), labels, weight, reduction="none", ignore_index=IGNORED
        )

    def loss_sum(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        logits = self._logits(model, batch)
        return self._losses(logits, batch["labels"].to(logits.device), weighted=True).sum()

    def count_items(self, batch: Batch) -> int:
        return int((batch["labels"] != IGNORED).sum())

    @torch.no_grad()
    def score(self, model: nn.Module, batch: Batch) -> RowScores:
        """Words, tags and predictions of each window; `loss` is a sum, not weighted by class."""
        logits = self._logits(model, batch)
        labels = batch["labels"].to(logits.device)
        losses = self._losses(logits, labels, weighted=False).sum(dim=1)
        labels, predictions = labels.cpu(), logits.argmax(dim=-1).cpu()
        rows = TagRows.scores(labels, predictions, batch, unread=self._outside)
        return {"loss": losses.cpu().double().numpy(), **rows}

    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Span metrics over whole rows as seqeval defines them; accuracy over words."""
        rows = TagRows.joined(scores)
        hits, words = rows.right()
        return {
            **self._counts(rows).metrics(),
            "accuracy": float(hits.sum() / words.sum()),
            "loss": float(scores["loss"].sum() / max(scores["items"].sum(), 1)),
        }

    def _counts(self, rows: TagRows) -> SpanCounts:
        def named(indices: Sequence[int]) -> list[str]:
            return [OUTSIDE if index < 0 else self.tags[index] for index in indices]

        types = span_types(self.tags, prefixed=self.prefixed)
        labels, predictions = map(named, rows.labels), map(named, rows.predictions)
        return SpanCounts.of(list(labels), list(predictions), types, prefixed=self.prefixed)

    def _interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "loss":
            return intervals.ratio_interval(scores["loss"], scores["items"])
        rows = TagRows.joined(scores)
        if metric == "accuracy":
            return intervals.ratio_interval(*rows.right())
        counts = self._counts(rows)
        return intervals.weighted_interval(
            len(rows.labels), lambda weights: counts.resampled(metric, weights)
        )

    def untuned(self, splits: Splits) -> RowScores | None:
        """The most frequent training tag for every word, with the training words' shares."""
        held_out = splits.held_out
        if held_out is None:
            return None
        seen = [i for row in splits.train["tags"] for i in self._indices(row) if i != IGNORED]
        counts = np.bincount(seen, minlength=len(self.tags))
        shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        rows = [[i for i in self._indices(row) if i != IGNORED] for row in held_out["tags"]]
        likeliest = int(counts.argmax())
        losses = np.asarray([float(-np.log(shares[row]).sum()) for row in rows])
        constant = [[likeliest] * len(row) for row in rows]
        return {"loss": losses, **TagRows(rows, constant).whole_scores()}

    @property
    def untuned_name(self) -> str:
        return "majority tag"

    @property
    def input_role(self) -> str:
        return "tokens"

    def preview(self, row: Mapping[str, Any], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
        """`trained` lists the labelled tokens with their tags."""
        shown = Task.preview(self, row, tokenizer)
        shown["trained"] = " ".join(
            f"{str(tokenizer.decode([index])).strip()}/{self.tags[label]}"
            for index, label in zip(row["input_ids"], row["labels"], strict=True)
            if label != IGNORED
        )
        return shown

    def answer_text(self, answer: Mapping[str, Any]) -> str:
        entities = answer["entities"]
        if not entities:
            return "no entities"
        return ", ".join(f"{e['text']} ({e['type']} {e['score']:.3g})" for e in entities)

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`entities` with text, type, characters start to end and score; `tokens` and their `tags`.

        Tokens are those given, or a text's words separated by white space. The score of a span is
        the mean probability of its words' tags. A word without tokens is `O`.
        """
        read = [_words(row, number) for number, row in enumerate(rows, start=1)]
        encoded = encoded_rows(
            read, None, predictor.tokenizer,
            max_length=predictor.max_length, stride=self.stride, which=self.label_piece,
            first_row=0,
        )  # fmt: skip
        collate = self.collator(predictor.tokenizer)
        best = [[(self._outside, 1.0)] * len(words.words) for words in read]
        for part in predictor.parts(as_rows(encoded.columns)):
            logits = self._logits(predictor.model, predictor.batch(part, collate))
            likely, index = logits.softmax(-1).max(-1)
            for i, row in enumerate(part):
                at = [p for p, label in enumerate(row["labels"]) if label != IGNORED]
                for word, p in zip(row["words"], at, strict=True):
                    best[row["row"]][word] = (int(index[i, p]), float(likely[i, p]))
        return [self._answer(words, tags) for words, tags in zip(read, best, strict=True)]

    def _answer(self, words: Words, best: Sequence[tuple[int, float]]) -> dict[str, Any]:
        tags = [OUTSIDE if index < 0 else self.tags[index] for index, _ in best]
        entities = []
        for kind, first, last in spans_of(tags, prefixed=self.prefixed):
            start, end = words.places[first][0], words.places[last][1]
            score = float(np.mean([p for _, p in best[first : last + 1]]))
            entities.append({"text": words.text[start:end], "type": kind, "start": start,
                             "end": end, "score": score})  # fmt: skip
        return {"entities": entities, "tokens": list(words.words), "tags": tags}


def _words(row: Mapping[str, Any], number: int) -> Words:
    given = row.get("tokens", row.get("text"))
    if isinstance(given, str) and given.strip():
        return Words.split(given)
    if isinstance(given, list) and given and all(isinstance(w, str) and w.strip() for w in given):
        text = row.get("text")
        with contextlib.suppress(ValueError):
            if isinstance(text, str):
                return Words.located(text, given)
        return Words.joined(given)
    raise DataError(
        f"row {number} to predict has no 'tokens': give a text, or a list of non-empty words."
    )
