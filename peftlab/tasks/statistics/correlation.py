"""Correlation and r2 of predictions with labels, over all rows or over resamples."""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[Any]


def pearson(x: Array, y: Array, weights: Array | None = None) -> Array:
    """Pearson's correlation of `x` and `y` [rows], rows counted by `weights` [..., rows].

    0 where either side is constant.
    """
    w = np.ones(len(x)) if weights is None else weights
    total = np.maximum(w.sum(axis=-1), 1e-12)
    # Centred first, against cancellation.
    x, y = x - x.mean(), y - y.mean()
    mean_x, mean_y = w @ x / total, w @ y / total
    variance_x = np.maximum(w @ (x * x) / total - mean_x**2, 0.0)
    variance_y = np.maximum(w @ (y * y) / total - mean_y**2, 0.0)
    covariance = w @ (x * y) / total - mean_x * mean_y
    floor = 1e-24 * np.maximum((x * x).max(initial=0.0) * (y * y).max(initial=0.0), 1e-300)
    scale = variance_x * variance_y
    correlation = np.where(scale > floor, covariance / np.sqrt(np.maximum(scale, 1e-300)), 0.0)
    return np.clip(correlation, -1.0, 1.0)


def ranks(values: Array) -> Array:
    """Ranks of `values` [rows], from 1; equal values share their mean rank."""
    _, inverse, counts = np.unique(values, return_inverse=True, return_counts=True)
    last = np.cumsum(counts)
    return np.asarray((last - (counts - 1) / 2)[inverse], dtype=np.float64)


def r2(prediction: Array, truth: Array, weights: Array | None = None) -> Array:
    """Coefficient of determination; 0 where `truth` is constant."""
    w = np.ones(len(truth)) if weights is None else weights
    total = np.maximum(w.sum(axis=-1), 1e-12)
    error = w @ (prediction - truth) ** 2 / total
    centred = truth - truth.mean()
    variance = w @ (centred * centred) / total - (w @ centred / total) ** 2
    return np.where(variance > 1e-300, 1.0 - error / np.maximum(variance, 1e-300), 0.0)
