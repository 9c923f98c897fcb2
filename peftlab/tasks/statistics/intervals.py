"""95 % intervals: Wilson's for shares, else by bootstrap over rows, with a fixed seed."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import numpy as np
from numpy.typing import NDArray

RESAMPLES = 1000
_SEED = 20_240_607
_NORMAL_95 = 1.959964
"""The normal distribution's 97.5 % quantile."""
_ELEMENTS_AT_ONCE = 4_000_000

Array = NDArray[Any]


def ratio_interval(
    numerator: Array, denominator: Array, transform: Callable[[Array], Array] = np.asarray
) -> tuple[float, float]:
    """For `transform(sum(numerator) / sum(denominator))`; both of shape [rows]."""
    generator = np.random.default_rng(_SEED)
    rows = len(numerator)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(rows, 1))
    ratios = []
    for start in range(0, RESAMPLES, at_once):
        drawn = generator.integers(rows, size=(min(at_once, RESAMPLES - start), rows))
        below = denominator[drawn].sum(axis=1, dtype=np.float64)
        ratios.append(numerator[drawn].sum(axis=1, dtype=np.float64) / np.maximum(below, 1e-12))
    return _middle(transform(np.concatenate(ratios)))


def share_interval(hits: int, rows: int) -> tuple[float, float]:
    """For a share `hits / rows`, by Wilson's score.

    Unlike the bootstrap it keeps its width where every row was right, and on few rows.
    Source: E. B. Wilson, Probable inference, the law of succession, and statistical inference,
    Journal of the American Statistical Association 22, 1927.
    """
    share, z2 = hits / rows, _NORMAL_95**2
    centre = (share + z2 / (2 * rows)) / (1 + z2 / rows)
    half = _NORMAL_95 * math.sqrt(share * (1 - share) / rows + z2 / (4 * rows**2)) / (1 + z2 / rows)
    return max(0.0, centre - half), min(1.0, centre + half)


def confusion_interval(
    labels: Array,
    predictions: Array,
    metric: Callable[[Array, Array], Array],
    *,
    classes: int | None = None,
) -> tuple[float, float]:
    """For a metric of hits and margins of the confusion matrix.

    `metric` takes, for each class, the rows that are right, and the predictions plus the rows:
    [resamples, classes] each. Resampling rows is equivalent to drawing the confusion matrix from a
    multinomial, at a cost that grows with its cells that are not empty.
    """
    classes = int(max(labels.max(), predictions.max())) + 1 if classes is None else classes
    cells, counts = np.unique(
        labels.astype(np.int64) * classes + predictions.astype(np.int64), return_counts=True
    )
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(classes, len(cells)))
    values = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        drawn = generator.multinomial(counts.sum(), counts / counts.sum(), size=size)
        values.append(metric(*_margins(drawn, cells, classes)))
    return _middle(np.concatenate(values))


def confusion_counts(labels: Array, predictions: Array, classes: int) -> tuple[Array, Array]:
    """The rows that are right, and predictions plus rows, of each class: [1, classes] each."""
    cells = labels.astype(np.int64) * classes + predictions.astype(np.int64)
    found, counts = np.unique(cells, return_counts=True)
    return _margins(counts[None], found, classes)


def _margins(counts: Array, cells: Array, classes: int) -> tuple[Array, Array]:
    """Counts of cells [resamples, cells] as hits, and as the sum of both margins."""
    label, prediction = cells // classes, cells % classes
    same = label == prediction
    hits = np.zeros((len(counts), classes), dtype=np.int64)
    hits[:, label[same]] = counts[:, same]
    return hits, _sums(counts, label, classes) + _sums(counts, prediction, classes)


def _sums(counts: Array, of: Array, classes: int) -> Array:
    """Counts [resamples, cells] summed by the class of each cell."""
    order = np.argsort(of, kind="stable")
    present, starts = np.unique(of[order], return_index=True)
    sums = np.zeros((len(counts), classes), dtype=np.int64)
    sums[:, present] = np.add.reduceat(counts[:, order], starts, axis=1)
    return sums


def f1_macro(hits: Array, either: Array) -> Array:
    """Mean F1 over the classes that occur as label or prediction, as in scikit-learn.

    `hits` are the rows that are right, `either` predictions plus rows: [resamples, classes] each.
    """
    f1 = 2 * hits / np.maximum(either, 1)
    return np.asarray(f1.sum(axis=1) / np.maximum((either > 0).sum(axis=1), 1))


def weighted_interval(rows: int, metric: Callable[[Array], Array]) -> tuple[float, float]:
    """For a metric of weighted rows; `metric` takes counts of draws [resamples, rows]."""
    generator = np.random.default_rng(_SEED)
    at_once = max(1, _ELEMENTS_AT_ONCE // max(rows, 1))
    values = []
    for start in range(0, RESAMPLES, at_once):
        size = min(at_once, RESAMPLES - start)
        weights = generator.multinomial(rows, np.full(rows, 1 / rows), size=size)
        values.append(metric(weights.astype(np.float64)))
    return _middle(np.concatenate(values))


def _middle(values: Array) -> tuple[float, float]:
    low, high = np.percentile(values, [2.5, 97.5])
    return float(low), float(high)
