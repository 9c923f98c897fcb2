"""Relation extraction: the relation between two marked entities of a text."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, ClassVar, Literal, Self, cast

import numpy as np
import torch
from torch import nn

from peftlab.config.tasks.relation_extraction import RelationExtractionOptions
from peftlab.data.bad_rows import BadRows
from peftlab.data.labels.names import label_histogram
from peftlab.errors import ConfigError, DataError
from peftlab.model.head_spec import HeadSpec, label_config
from peftlab.model.pooling import is_decoder
from peftlab.tasks.class_weights import class_weights, warn_of_imbalance
from peftlab.tasks.classification.entity_markers import Markers, Span
from peftlab.tasks.classification.relation_metrics import RelationLabels, none_of
from peftlab.tasks.classification.text_classification import TextClassification
from peftlab.tasks.encoding import as_rows
from peftlab.tasks.predictor import Predictor
from peftlab.tasks.task import Batch
from peftlab.tasks.windows import frame_of, pieces

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerBase

    from peftlab.data.splits import Splits

_INPUTS = ("text", "head", "tail")
_STARTS = ("head_at", "tail_at")


@dataclass(frozen=True, slots=True)
class RelationExtraction(TextClassification):
    """A label for a text whose two entities are enclosed in marker tokens.

    `pooled` classifies like text classification. `entity_start` is a linear layer on the
    concatenated hidden states at both opening markers (L. Baldini Soares et al., Matching the
    Blanks, 2019). It is a token head with twice the labels: one half is read at each marker, and
    the halves are summed.
    """

    options: ClassVar[type[RelationExtractionOptions]] = RelationExtractionOptions  # type: ignore[assignment]

    none: str | None = None
    representation: Literal["pooled", "entity_start"] = "pooled"
    marker_kind: Literal["auto", "spare", "punctuation"] = "auto"
    markers: Markers | None = None

    @classmethod
    def from_splits(cls, splits: Splits, options: RelationExtractionOptions) -> Self:  # type: ignore[override]
        names = splits.label_names
        if names is None or len(names) < 2:
            raise DataError(f"{splits.origin}: relations need at least two different labels.")
        none = none_of(options.no_relation, names)
        counts = np.zeros(len(names), dtype=np.int64)
        if options.class_weights is not None:
            index_of = {name: index for index, name in enumerate(names)}
            rows = [index_of[name] for name in splits.train["label"]]
            counts = np.bincount(rows, minlength=len(names))
        else:
            warn_of_imbalance(label_histogram(splits.train, names))
        weights = class_weights(options.class_weights, names, counts)
        return cls(
            RelationLabels(names, weights, none), False, none, options.representation,
            options.markers,
        )  # fmt: skip

    @classmethod
    def from_state(cls, state: Mapping[str, Any]) -> Self:
        names = tuple(state["label_names"])
        return cls(
            RelationLabels(names, None, state["no_relation"]), False, state["no_relation"],
            state["representation"], "auto", Markers.from_state(state["markers"]),
        )  # fmt: skip

    def state(self) -> dict[str, Any]:
        return {
            "label_names": list(self.problem.label_names),
            "no_relation": self.none,
            "representation": self.representation,
            "markers": self._marked.state(),
        }

    def head(self) -> HeadSpec:
        if self.representation == "pooled":
            return HeadSpec("AutoModelForSequenceClassification", self.problem.head_config())
        halves = [f"{name} {at}" for at in ("e1", "e2") for name in self.problem.label_names]
        return HeadSpec(
            "AutoModelForTokenClassification",
            label_config(halves),
        )

    def attach(self, tokenizer: PreTrainedTokenizerBase, model: nn.Module | None) -> Self:
        config = getattr(model, "config", None)
        if self.representation == "entity_start" and config is not None and is_decoder(config):
            raise ConfigError(
                f"task.representation is entity_start, but {type(model).__name__} is a "
                "decoder: at an entity's opening marker it has not read the entity yet; set it to "
                "pooled."
            )
        if self.markers is not None:
            self.markers.check(tokenizer)
            return self
        return replace(self, markers=Markers.of(tokenizer, self.marker_kind))

    @property
    def _marked(self) -> Markers:
        if self.markers is None:
            raise RuntimeError("attach the task to a tokenizer first")
        return self.markers

    @property
    def trained_tokens(self) -> tuple[int, ...]:
        return self._marked.ids if self._marked.trained else ()

    def _columns(
        self,
        inputs: Mapping[str, Sequence[Any]],
        tokenizer: PreTrainedTokenizerBase,
        max_length: int,
    ) -> tuple[dict[str, list[Any]], list[int]]:
        rows = as_rows(inputs)
        frame = frame_of(tokenizer, pair=False)
        columns: dict[str, list[Any]] = {}
        lengths = []
        tokenised = pieces(tokenizer, [row["text"] for row in rows])
        bad: dict[int, str] = {}
        for index, (row, (ids, places)) in enumerate(zip(rows, tokenised, strict=True)):
            try:
                marked, starts = self._marked.around(
                    ids, places, entities_of(row), max_length - frame.size
                )
            except DataError as problem:
                bad[index] = f"{row['text']!r:.60}: {problem}."
                continue
            encoded: dict[str, Any] = dict(frame.around(marked))
            if self.representation == "entity_start":
                shift = len(frame.before)
                encoded |= {name: at + shift for name, at in zip(_STARTS, starts, strict=True)}
            for name, value in encoded.items():
                columns.setdefault(name, []).append(value)
            lengths.append(len(ids) + len(self._marked.ids) + frame.size)
        if bad:
            raise BadRows(bad)
        return columns, lengths

    def logits(self, model: nn.Module, batch: Batch) -> torch.Tensor:
        output: torch.Tensor = model(**self.model_inputs(batch)).logits.float()
        if self.representation == "pooled":
            return output
        halves = output.unflatten(-1, (2, len(self.problem.label_names)))
        row = torch.arange(len(output), device=output.device)
        at = [batch[name].to(output.device) for name in _STARTS]
        summed: torch.Tensor = halves[row, at[0], 0] + halves[row, at[1], 1]
        return summed

    def _answers(
        self, rows: Sequence[Mapping[str, Any]], predictor: Predictor
    ) -> list[dict[str, Any]]:
        """`{"label", "probability", "probabilities", "head", "tail"}`; the last two are texts."""
        for number, row in enumerate(rows, 1):
            if not isinstance(row.get("text"), str) or not row.get("head") or not row.get("tail"):
                raise DataError(
                    f"row {number} to predict needs a text with <e1>..</e1> and <e2>..</e2>, or a "
                    "text and the spans head and tail."
                )
        answers = []
        for row, logits in zip(rows, self._row_logits(rows, _INPUTS, predictor), strict=True):
            head, tail = entities_of(row)
            answer = self.problem.answer(logits)
            answer |= {"head": row["text"][slice(*head)], "tail": row["text"][slice(*tail)]}
            answers.append(answer)
        return answers


def entities_of(row: Mapping[str, Any]) -> tuple[Span, Span]:
    """The character spans of a row's two entities."""
    head, tail = (cast("Mapping[str, int]", row[name]) for name in ("head", "tail"))
    return (int(head["start"]), int(head["end"])), (int(tail["start"]), int(tail["end"]))
