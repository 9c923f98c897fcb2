"""How far w8a8 may be from the exact function, derived for each case and valid for every draw.

Quantisation replaces x by x + E, and f = dy * scales / 127 by f + F. An entry of E or F is the
rounding of a number to a multiple of its row's step: it is uniform within half a step of zero and
independent of the others, with variance step^2 / 12. Every result is linear in E or in F, so its
squared distance from the exact result is a quadratic form, which `errors.tail` bounds.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.eager.int8_products import largest_code
from tests.kernels.errors import tail
from tests.kernels.int8_cases import Int8Case


class Spectrum(NamedTuple):
    """Of S, a result's quadratic form: tr S, tr S^2, and |S| or an upper bound of it."""

    trace: float
    squares: float
    largest: float

    @property
    def bound(self) -> float:
        """Of the result's distance from the exact one, in the Frobenius norm."""
        return math.sqrt(tail(*self))


def quantisation_bounds(case: Int8Case, seed: int = 3) -> tuple[float, dict[str, float]]:
    """The bounds of y and of every gradient; 0 where a result reads nothing quantised."""
    bounds = dict.fromkeys(case.leaves, 0.0)
    if case.arithmetic == "w8a16" or 0 in case.shape:
        return 0.0, bounds
    x, lora_a, lora_b = (case.tensors[n].detach().double() for n in ("x", "lora_a", "lora_b"))
    codes, scales = (case.tensors[name].double() for name in ("codes", "scales"))
    weight = reference.dequantize_rows(codes, scales)
    dy = case.dy(torch.empty(x.shape[0], codes.shape[0], dtype=case.dtype)).double()
    keep = case.keep(seed, 1)
    keep = torch.ones_like(x) if keep is None else keep
    kernels = case.kernels()
    x_deviation = _deviation(x, largest_code(kernels.forward_engine))
    dy_deviation = _deviation(dy * scales / 127, largest_code(kernels.backward_engine))

    low_rank = case.scaling * (lora_b @ lora_a).T
    y = _of_blocks(x_deviation[:, :, None] * (weight.T + keep[:, :, None] * low_rank))
    # Every row of F meets the same matrix.
    products = torch.linalg.svdvals(codes).outer(dy_deviation.flatten()).square()
    g = case.scaling * dy @ lora_b
    dropped = x_deviation * keep
    bounds["x"] = _of_eigenvalues(products).bound
    bounds["lora_a"] = _of_blocks(dropped.T[:, :, None] * g).bound
    bounds["lora_b"] = _of_kronecker(case.scaling * dy, lora_a, dropped, x_deviation, keep).bound
    return y.bound, bounds


def _deviation(rows: Tensor, largest: int) -> Tensor:
    """The standard deviation of each row's rounding errors [M, 1]."""
    return rows.abs().amax(dim=1, keepdim=True) / largest / math.sqrt(12)


def _of_blocks(blocks: Tensor) -> Spectrum:
    """Of a result whose independent parts are e_i @ blocks[i]."""
    return _of_eigenvalues(torch.linalg.svdvals(blocks).square())


def _of_eigenvalues(values: Tensor) -> Spectrum:
    return Spectrum(float(values.sum()), float(values.square().sum()), float(values.max()))


def _of_kronecker(
    dy: Tensor, a: Tensor, dropped: Tensor, deviation: Tensor, keep: Tensor
) -> Spectrum:
    """Of `dy^T (dropped * e) A^T`, where e is of shape [M, K]."""
    variances = dropped.square()
    grams = (dy @ dy.T).square(), (a.T @ a).square()
    squares = float((variances * (grams[0] @ variances @ grams[1])).sum())
    norms = torch.linalg.matrix_norm(deviation * dy, 2), torch.linalg.matrix_norm(a, 2)
    largest = float((keep.max() * norms[0] * norms[1]).square())
    trace = dy.square().sum(dim=1) @ variances @ a.square().sum(dim=0)
    return Spectrum(float(trace), squares, min(largest, math.sqrt(squares)))
