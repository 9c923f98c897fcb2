"""The error of a result against float64, and its bound."""

from __future__ import annotations

import math

import torch
from torch import Tensor

BOUND = {torch.float64: 1e-12, torch.float32: 1e-6, torch.bfloat16: 1e-2, torch.float16: 1e-2}
"""Relative Frobenius errors, as the kernels' design bounds them where many values are averaged."""

ROUNDINGS = 6
"""The longest chain from operands to a gradient: the adapter's cast, a row's step, g, g times the
scaling, g times the step, and the result."""

T = math.log(1e12)
"""One draw in 10^12 may exceed a bound; see `tail`."""


def tail(trace: float, squares: float, largest: float) -> float:
    """What e^T S e exceeds with probability exp(-T), for independent uniform e of variance 1.

    Uniform variables are strictly sub-Gaussian: by Hsu, Kakade and Zhang 2012 (arXiv:1110.2842) it
    is tr S + 2 sqrt(T tr S^2) + 2 T |S|. tr S is the mean. Where many independent errors are summed
    the other terms vanish beside it; where a result is few values, which scatter, they decide.
    """
    return trace + 2 * math.sqrt(T * squares) + 2 * T * largest


def rounding_bound(dtype: torch.dtype, rows: int) -> float:
    """The relative error of arithmetic in this dtype: `BOUND`, or more where the rows are few.

    Each rounding of a chain is uniform within half a unit in the last place, u of the value at
    most, and independent in each row. Their sum never exceeds ROUNDINGS * u of a value, which in
    bfloat16 is more than `BOUND`. In float32 that leaves 11 u of `BOUND` for a sum of up to 72
    terms, the tests' widest, whose error has a deviation of sqrt(72 / 3) u = 5 u at most.
    """
    unit = torch.finfo(dtype).eps / 2
    mean = ROUNDINGS * unit**2 / 3
    scattered = math.sqrt(tail(mean, mean**2 / max(1, rows), mean / max(1, rows)))
    return max(BOUND[dtype], min(scattered, ROUNDINGS * unit))


def error(result: Tensor, truth: Tensor, uncancelled: Tensor | None = None) -> float:
    """Relative to the truth, or to its size where its terms do not cancel."""
    return distance(result, truth) / size(truth, uncancelled)


def distance(result: Tensor, truth: Tensor) -> float:
    """In the Frobenius norm."""
    assert result.shape == truth.shape
    return float((result.double() - truth).norm())


def size(truth: Tensor, uncancelled: Tensor | None = None) -> float:
    """The norm of the truth, or of `uncancelled` where that is larger."""
    norms = [float(tensor.norm()) for tensor in (truth, uncancelled) if tensor is not None]
    return max(1e-30, *norms)
