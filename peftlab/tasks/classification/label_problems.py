"""Kinds of labels (one class, several, a number) with their loss, metrics and answers."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np
import torch
from torch.nn import functional as F

from peftlab.errors import DataError
from peftlab.model.head_spec import label_config
from peftlab.tasks.positions import positions
from peftlab.tasks.statistics import intervals
from peftlab.tasks.statistics.correlation import pearson, r2, ranks
from peftlab.tasks.task import RowScores

if TYPE_CHECKING:
    import datasets


@dataclass(frozen=True, slots=True)
class LabelProblem(ABC):
    """A problem over `label_names`; `weights` of the classes apply to the training loss alone."""

    name: ClassVar[str]
    best_metric: ClassVar[str]
    metric_names: ClassVar[Mapping[str, bool]]
    untuned_name: ClassVar[str] = "majority class"
    fp32_answers: ClassVar[bool] = False
    """Whether answers are numbers, which bf16 would round to three digits."""

    label_names: tuple[str, ...] = ()
    weights: tuple[float, ...] | None = None

    def head_config(self) -> dict[str, object]:
        """The fields of the model's configuration that shape its head."""
        return label_config(self.label_names) | {"problem_type": f"{self.name}_classification"}

    def index(self, name: str) -> int:
        """A label's index. Raises `DataError` for an unknown name."""
        index = positions(self.label_names).get(name)
        if index is None:
            known = ", ".join(self.label_names[:20])
            raise DataError(f"label {name!r} is unknown; the task has {known}.")
        return index

    def _weights(self, like: torch.Tensor) -> torch.Tensor | None:
        return None if self.weights is None else like.new_tensor(self.weights)

    @abstractmethod
    def target(self, label: Any) -> Any:
        """A checked row's label as an encoded row has it."""

    def targets(self, labels: Sequence[Any]) -> list[Any]:
        """`target` of many rows."""
        return [self.target(label) for label in labels]

    def collated(self, targets: Sequence[Any]) -> Any:
        """A batch of targets as the loss reads them, or None: as any other column."""
        return None

    @abstractmethod
    def shown(self, target: Any) -> Any:
        """A target in readable form."""

    @abstractmethod
    def losses(self, logits: torch.Tensor, labels: torch.Tensor, *, weighted: bool) -> torch.Tensor:
        """The loss of each row [rows], from logits [rows, labels] in fp32."""

    @abstractmethod
    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        """Predictions from logits [rows, labels], in the form of the targets."""

    @abstractmethod
    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Metrics from `prediction`, `label` and `loss`."""

    @abstractmethod
    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """A 95 % interval of one of `metric_names` except `loss`."""

    @abstractmethod
    def untuned(self, train: datasets.Dataset, held_out: datasets.Dataset) -> RowScores:
        """Scores of one constant prediction for the held-out rows, derived from train."""

    @abstractmethod
    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        """The answer of `predict` from one row's logits [labels]."""


class SingleLabel(LabelProblem):
    __slots__ = ()
    name: ClassVar[str] = "single_label"
    best_metric: ClassVar[str] = "f1_macro"
    metric_names: ClassVar[Mapping[str, bool]] = {
        "accuracy": True, "f1_macro": True, "f1_micro": True, "loss": False,
    }  # fmt: skip

    def target(self, label: Any) -> int:
        return self.index(label)

    def targets(self, labels: Sequence[Any]) -> list[Any]:
        index_of = positions(self.label_names)
        return [index_of[label] if label in index_of else self.index(label) for label in labels]

    def shown(self, target: Any) -> str:
        return str(self.label_names[target])

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, *, weighted: bool) -> torch.Tensor:
        weights = self._weights(logits) if weighted else None
        return F.cross_entropy(logits, labels, weight=weights, reduction="none")

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.argmax(dim=-1)

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
        label, prediction = scores["label"], scores["prediction"]
        if metric == "f1_macro":
            return intervals.confusion_interval(label, prediction, intervals.f1_macro)
        # With one label a row, micro F1 is the accuracy.
        return intervals.share_interval(int((label == prediction).sum()), len(label))

    def untuned(self, train: datasets.Dataset, held_out: datasets.Dataset) -> RowScores:
        """The most frequent training label for every row, with the training rows' shares."""
        index_of = {name: index for index, name in enumerate(self.label_names)}
        counts = np.bincount(
            [index_of[name] for name in train["label"]], minlength=len(self.label_names)
        )
        # A label that train lacks counts as one row, so that the loss is finite.
        shares = np.maximum(counts, 1) / np.maximum(counts, 1).sum()
        label = np.asarray([index_of[name] for name in held_out["label"]])
        prediction = np.full(len(label), counts.argmax())
        return {"label": label, "prediction": prediction, "loss": -np.log(shares[label])}

    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        probabilities = logits.softmax(dim=-1).tolist()
        named = dict(zip(self.label_names, probabilities, strict=True))
        label = max(named, key=named.__getitem__)
        return {"label": label, "probability": named[label], "probabilities": named}


class Regression(LabelProblem):
    """One number per row, trained with squared error."""

    __slots__ = ()
    name: ClassVar[str] = "regression"
    best_metric: ClassVar[str] = "pearson"
    metric_names: ClassVar[Mapping[str, bool]] = {
        "pearson": True, "spearman": True, "r2": True, "mse": False, "loss": False,
    }  # fmt: skip
    untuned_name: ClassVar[str] = "training mean"
    fp32_answers: ClassVar[bool] = True

    def head_config(self) -> dict[str, object]:
        return {"num_labels": 1, "problem_type": "regression"}

    def target(self, label: Any) -> float:
        return float(label)

    def shown(self, target: Any) -> float:
        return float(target)

    def losses(self, logits: torch.Tensor, labels: torch.Tensor, *, weighted: bool) -> torch.Tensor:
        return (logits.squeeze(-1) - labels.to(logits.dtype)) ** 2

    def predictions(self, logits: torch.Tensor) -> torch.Tensor:
        return logits.squeeze(-1).double()

    def metrics(self, scores: RowScores) -> dict[str, float]:
        """Correlations are 0 where predictions or labels are constant."""
        label, prediction = scores["label"], scores["prediction"]
        error = float(((label - prediction) ** 2).mean())
        return {
            "pearson": float(pearson(prediction, label)),
            "spearman": float(pearson(ranks(prediction), ranks(label))),
            "r2": float(r2(prediction, label)),
            "mse": error,
            "loss": float(scores["loss"].mean()),
        }

    def interval(self, scores: RowScores, metric: str) -> tuple[float, float]:
        """Bootstrap over rows; for Spearman, ranks are computed once over all rows."""
        label, prediction = scores["label"], scores["prediction"]
        if metric == "mse":
            return intervals.ratio_interval((label - prediction) ** 2, np.ones(len(label)))
        if metric == "r2":
            return intervals.weighted_interval(len(label), lambda w: r2(prediction, label, w))
        if metric == "spearman":
            label, prediction = ranks(label), ranks(prediction)
        return intervals.weighted_interval(len(label), lambda w: pearson(prediction, label, w))

    def untuned(self, train: datasets.Dataset, held_out: datasets.Dataset) -> RowScores:
        label = np.asarray(held_out["label"], dtype=float)
        prediction = np.full(len(label), np.mean(train["label"]))
        return {"label": label, "prediction": prediction, "loss": (label - prediction) ** 2}

    def answer(self, logits: torch.Tensor) -> dict[str, Any]:
        return {"value": logits.squeeze(-1).item()}
