"""Any number of labels a row."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch.nn import functional as F

from peftlab.tasks.classification.label_problems import LabelProblem
from peftlab.tasks.positions import positions
from peftlab.tasks.statistics import intervals
from peftlab.tasks.task import RowScores

if TYPE_CHECKING:
    from collections.abc import Mapping

    import datasets

THRESHOLD = 0.5
"""The probability from which a prediction includes a label."""
_AT_ONCE = 256
_DENSE = 256
"""Labels up to which an encoded row has a number for each; above, the indices of those it has."""


class MultiLabel(LabelProblem):
    """Any number of labels per row, each with its own sigmoid; the loss is their mean.

    Scores have `label` and `prediction` [rows, labels] in 0 and 1, a byte each.
    """

    __slots__ = ()
    name: ClassVar[str] = "multi_label"
    best_metric: ClassVar[str] = "f1_micro"
    metric_names: ClassVar[Mapping[str, bool]] = {
        "f1_micro": True, "f1_macro": True, "subset_accuracy": True, "loss": False,
    }  # fmt: skip

    @property
    def _sparse(self) -> bool:
        return len(self.label_names) > _DENSE

    def target(self, label: Any) -> list[float] | list[int]:
        """0.0 or 1.0 for each label; of more than 256 labels, the indices of the row's."""
        present = sorted({self.index(name) for name in label})
        if self._sparse:
            return present
        dense = [0.0] * len(self.label_names)
        for index in present:
            dense[index] = 1.0
        return dense

    def collated(self, targets: Sequence[Any]) -> Any:
        if not self._sparse:
            return None
        dense = torch.zeros(len(targets), len(self.label_names))
        for row, present in enumerate(targets):
            dense[row, list(present)] = 1.0
        return dense

    def shown(self, target: Any) -> list[str]:
        if self._sparse:
            return [self.label_names[index] for index in target]
        return [name for name, has in zip(self.label_names, target, strict=True) if has]

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, *, weighted: bool) -> torch.Tensor:
        weights = self._weights(logits) if weighted else None
        return F.binary_cross_entropy_with_logits(
            logits, labels.to(logits.dtype), pos_weight=weights, reduction="none"
        ).mean(dim=-1)

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return (logits.sigmoid() >= THRESHOLD).to(torch.int8)

    def metrics(self, scores: RowScores) -> dict[str, float]:
        """`subset_accuracy` is the share of rows whose labels are all predicted exactly."""
        label, prediction = _bytes(scores)
        hits = (label & prediction).sum(axis=0)
        either = label.sum(axis=0) + prediction.sum(axis=0)
        return {
            "f1_micro": float(2 * hits.sum() / max(int(either.sum()), 1)),
            "f1_macro": float((2 * hits / np.maximum(either, 1)).mean()),
            "subset_accuracy": float((label == prediction).all(axis=1).mean()),
            "loss": float(scores["loss"].mean()),
        }

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        label, prediction = _bytes(scores)
        if metric == "subset_accuracy":
            right = (label == prediction).all(axis=1)
            return intervals.share_interval(int(right.sum()), len(right))
        both = label & prediction
        if metric == "f1_micro":
            hits = 2 * both.sum(axis=1)
            return intervals.ratio_interval(hits, label.sum(axis=1) + prediction.sum(axis=1))
        either = label + prediction
        count = label.shape[1]

        def mean_f1(weights: NDArray[Any]) -> NDArray[Any]:
            # Some labels at a time: as fractions, all of them take eight times their bytes.
            parts = [slice(start, start + _AT_ONCE) for start in range(0, count, _AT_ONCE)]
            sums = [
                (weights @ (2.0 * both[:, part]) / np.maximum(weights @ either[:, part], 1)).sum(-1)
                for part in parts
            ]
            return np.asarray(sum(sums) / count)

        return intervals.weighted_interval(len(label), mean_f1)

    def untuned(self, train: datasets.Dataset, held_out: datasets.Dataset) -> RowScores:
        """Each label for all rows or for none, by the majority of train."""
        rows, count = train["label"], len(self.label_names)
        indices = [index for row in self._indices(rows) for index in row]
        shares = np.bincount(indices, minlength=count) / len(rows)
        # Shares stay half a row away from 0 and 1, so that the loss is finite.
        shares = np.clip(shares, 0.5 / len(rows), 1 - 0.5 / len(rows))
        absent, odds = np.log(1 - shares).sum(), np.log(shares) - np.log(1 - shares)
        held = self._indices(held_out["label"])
        label = np.zeros((len(held), count), dtype=np.int8)
        for row, present in enumerate(held):
            label[row, present] = 1
        losses = np.asarray([-(absent + odds[present].sum()) / count for present in held])
        prediction = np.tile((shares >= THRESHOLD).astype(np.int8), (len(label), 1))
        return {"label": label, "prediction": prediction, "loss": losses}

    def _indices(self, labels: Sequence[Sequence[str]]) -> list[list[int]]:
        index_of = positions(self.label_names)
        return [sorted({index_of[name] for name in row}) for row in labels]

    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        named = dict(zip(self.label_names, logits.sigmoid().tolist(), strict=True))
        labels = [name for name, probability in named.items() if probability >= THRESHOLD]
        return {"labels": labels, "probabilities": named}


def _bytes(scores: RowScores) -> tuple[NDArray[np.int8], NDArray[np.int8]]:
    return scores["label"].astype(np.int8), scores["prediction"].astype(np.int8)
