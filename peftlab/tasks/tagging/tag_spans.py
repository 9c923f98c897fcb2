"""Spans in tagged rows, counted as seqeval does, and their metrics."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import DataError

OUTSIDE = "O"
_PREFIXED = re.compile(r"[BIESLU]-.+", re.DOTALL)
_BIOES = {"L": "E", "U": "S"}
_BARE = frozenset("BIESLU")
_OUTSIDE_WORDS = frozenset({"0", "none", "outside", "out", "_", "nil", "null"})
"""What some data sets write for `O`, in lower case."""
_ANY = "span"
"""The type of spans whose tags name none."""

Span = tuple[str, int, int]
"""Type, first word, last word."""


def has_spans(tags: Sequence[str], scheme: str, origin: str) -> bool:
    """Whether tags mark spans by prefixes; `scheme` is auto, spans or plain.

    Raises `DataError` where tags mark spans by option or by their prefixes, and one has no prefix;
    and where no tag is `O` and one may stand for it.
    """
    named = [tag for tag in tags if tag != OUTSIDE]
    if scheme != "plain" and _bare(named):
        return True
    odd = [tag for tag in named if not _PREFIXED.fullmatch(tag)]
    outside = [tag for tag in odd if tag.lower() in _OUTSIDE_WORDS and OUTSIDE not in tags]
    if outside and scheme != "plain":
        raise DataError(
            f"{origin}: does the tag {outside[0]!r} mean no entity? Write it as O; or set "
            "task.scheme=plain, which takes every tag but O as an entity."
        )
    if scheme == "plain" or (scheme == "auto" and len(odd) == len(named)):
        return False
    if odd:
        known = next((tag for tag in named if tag not in odd), None)
        beside = "" if known is None else f", as {known!r} has"
        raise DataError(
            f"{origin}: tag {odd[0]!r} has no prefix B-, I-, E- or S-{beside}; correct it, or set "
            "task.scheme=plain to take tags as they are."
        )
    return True


def spans_of(tags: Sequence[str], *, prefixed: bool) -> list[Span]:
    """The spans of one row, in order.

    Prefixed tags are read leniently, as CoNLL's script and seqeval do: IOB1, IOB2, BIOES and BILOU
    alike, an I- after another type opens a span. Of plain tags every word not `O` is one.
    """
    if not prefixed:
        return [(tag, at, at) for at, tag in enumerate(tags) if tag != OUTSIDE]
    from seqeval.metrics.sequence_labeling import get_entities

    as_bioes = [
        _BIOES.get(tag[0], tag[0]) + (tag[1:] or f"-{_ANY}") if tag != OUTSIDE else tag
        for tag in tags
    ]
    return [(kind, first, last) for kind, first, last in get_entities(as_bioes)]


def span_types(tags: Sequence[str], *, prefixed: bool) -> tuple[str, ...]:
    """The types that spans of such tags may have, sorted."""
    named = (tag for tag in tags if tag != OUTSIDE)
    return tuple(sorted({tag.partition("-")[2] or _ANY if prefixed else tag for tag in named}))


def _bare(tags: Sequence[str]) -> bool:
    """Whether tags are the letters of a scheme alone: B and I of spans without types."""
    return "B" in tags and len(tags) > 1 and set(tags) <= _BARE


@dataclass(frozen=True, slots=True)
class SpanCounts:
    """Correct (`hits`), predicted and true spans of each row and type: [rows, types] each."""

    types: tuple[str, ...]
    hits: NDArray[Any]
    predicted: NDArray[Any]
    true: NDArray[Any]

    @classmethod
    def of(
        cls, labels: Sequence[Sequence[str]], predictions: Sequence[Sequence[str]],
        types: tuple[str, ...], *, prefixed: bool,
    ) -> SpanCounts:  # fmt: skip
        """Count row by row; a predicted span is correct where type, first and last word agree."""
        at = {kind: index for index, kind in enumerate(types)}
        counts = np.zeros((3, len(labels), len(types)), dtype=np.int64)
        for row, (label, prediction) in enumerate(zip(labels, predictions, strict=True)):
            true = set(spans_of(label, prefixed=prefixed))
            predicted = set(spans_of(prediction, prefixed=prefixed))
            for index, spans in enumerate((true & predicted, predicted, true)):
                for kind, _, _ in spans:
                    counts[index, row, at[kind]] += 1
        return cls(types, counts[0], counts[1], counts[2])

    def metrics(self) -> dict[str, float]:
        """precision, recall and f1 over all spans; f1_macro over types; the f1 of each type.

        As in seqeval with zero_division=0, without types that occur on neither side.
        """
        hits, predicted, true = (
            counts.sum(axis=0) for counts in (self.hits, self.predicted, self.true)
        )
        either = predicted + true
        of_type = 2 * hits / np.maximum(either, 1)
        seen = either > 0
        return {
            "f1": float(2 * hits.sum() / max(either.sum(), 1)),
            "precision": float(hits.sum() / max(predicted.sum(), 1)),
            "recall": float(hits.sum() / max(true.sum(), 1)),
            "f1_macro": float(of_type[seen].mean()) if seen.any() else 0.0,
            **{
                f"f1/{kind}": float(value)
                for kind, value, there in zip(self.types, of_type, seen, strict=True)
                if there
            },
        }

    def resampled(self, metric: str, weights: NDArray[Any]) -> NDArray[Any]:
        """A metric of rows drawn with replacement: weights [resamples, rows] -> [resamples]."""
        hits, predicted, true = (weights @ c for c in (self.hits, self.predicted, self.true))
        if metric == "f1_macro":
            either = predicted + true
            f1 = 2 * hits / np.maximum(either, 1)
            return np.asarray(f1.sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1))
        if metric not in ("f1", "precision", "recall"):
            at = [self.types.index(metric.removeprefix("f1/"))]
            hits, predicted, true = hits[:, at], predicted[:, at], true[:, at]
        top, all_predicted, all_true = (c.sum(axis=1) for c in (hits, predicted, true))
        below = {"precision": all_predicted, "recall": all_true}.get(
            metric, (all_predicted + all_true) / 2
        )
        return np.asarray(top / np.maximum(below, 0.5))
