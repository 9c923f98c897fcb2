"""F1 over relations, as SemEval-2010 Task 8 scores it: with directions, without "no relation"."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from peftlab.errors import ConfigError
from peftlab.tasks.classification.label_problems import SingleLabel
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import RowScores

_DIRECTED = re.compile(r"(?P<relation>.+)\((?:e1,\s*e2|e2,\s*e1)\)")
_NONE = ("other", "no_relation", "no relation", "norelation", "none", "na", "n/a")


def none_of(option: str | None, label_names: Sequence[str]) -> str | None:
    """The label that means no relation, or None.

    `option` is auto, a label, or None. Raises `ConfigError` for a name that is not a label.
    """
    if option is None or option in label_names:
        return option
    if option == "auto":
        return next((name for name in label_names if name.strip().lower() in _NONE), None)
    raise ConfigError(
        f"task.no_relation is {option!r}, which is not a label; labels are "
        f"{', '.join(label_names[:20])}, or null where every label is a relation."
    )


class RelationLabels(SingleLabel):
    """One label a row. `Cause(e1,e2)` and `Cause(e2,e1)` are one relation in two directions.

    A prediction is correct only with its direction; the wrong direction lowers both precision and
    recall of the relation. Macro F1 is the mean over relations, micro F1 sums over them. The label
    for no relation is excluded, but predicting a relation for it lowers precision.
    Source: I. Hendrickx et al., SemEval-2010 Task 8, 2010, and its official scorer.
    """

    __slots__ = ("relations",)
    relations: tuple[int, ...]
    metric_names: ClassVar[Mapping[str, bool]] = {
        "f1_macro": True, "f1_micro": True, "accuracy": True, "loss": False,
    }  # fmt: skip

    def __init__(
        self,
        label_names: tuple[str, ...],
        weights: tuple[float, ...] | None = None,
        none: str | None = None,
    ) -> None:
        super().__init__(label_names, weights)
        names: dict[str, int] = {}
        # The relation of each label, -1 for none.
        relations = tuple(
            -1 if name == none else names.setdefault(_relation(name), len(names))
            for name in label_names
        )
        object.__setattr__(self, "relations", relations)

    def metrics(self, scores: RowScores) -> dict[str, float]:
        counts = intervals.confusion_counts(
            scores["label"], scores["prediction"], len(self.label_names)
        )
        return {
            "f1_macro": float(self._f1_macro(*counts)[0]),
            "f1_micro": float(self._f1_micro(*counts)[0]),
            "accuracy": float((scores["label"] == scores["prediction"]).mean()),
            "loss": float(scores["loss"].mean()),
        }

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        if metric == "accuracy":
            return super().interval(scores, metric)
        of = self._f1_macro if metric == "f1_macro" else self._f1_micro
        return intervals.confusion_interval(
            scores["label"], scores["prediction"], of, classes=len(self.label_names)
        )

    def _counts(
        self, hits: NDArray[Any], either: NDArray[Any]
    ) -> tuple[NDArray[Any], NDArray[Any]]:
        """Correct predictions, and predictions plus rows: [resamples, relations] each."""
        relations = max(self.relations, default=-1) + 1
        of = np.zeros((len(self.label_names), relations))
        for label, relation in enumerate(self.relations):
            if relation >= 0:
                of[label, relation] = 1
        return hits @ of, either @ of

    def _f1_macro(self, hits: NDArray[Any], either: NDArray[Any]) -> NDArray[Any]:
        right, both = self._counts(hits, either)
        return np.asarray((2 * right / np.maximum(both, 1)).mean(axis=1))

    def _f1_micro(self, hits: NDArray[Any], either: NDArray[Any]) -> NDArray[Any]:
        right, both = self._counts(hits, either)
        return np.asarray(2 * right.sum(axis=1) / np.maximum(both.sum(axis=1), 1))


def _relation(label: str) -> str:
    match = _DIRECTED.fullmatch(label)
    return label if match is None else match["relation"]
