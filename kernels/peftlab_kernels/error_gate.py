"""The error of w8a8 against w8a16 on real activations, and whether it is within the tolerance.

Both products read the same 8-bit weight, so that w8a8 adds only the rounding of activations. A
row's largest magnitude determines its step: where one feature is far larger than the others
(LLM.int8's outliers), few codes are left for those, and the error grows. It is measured on some
rows against the product of the unquantised rows, in multiples of the error on Gaussian rows.

    forward  |(x - x^) W^T| / |x W^T|       backward  |(f - f^) Q| / |f Q|,  f = dy * scales / 127

Forward's error is the root mean square of the rows' own ratios: a token with large activations does
not hide the others, which weigh as much in the next layer. Backward's is one ratio over all rows: a
token that hardly affects the loss adds little to a gradient, and so does its error.
"""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels.dispatch import int8_kernels_for
from peftlab_kernels.eager import products
from peftlab_kernels.int8_format import LARGEST_CODE, Int8Weight

TOLERANCE = 3.0
"""The largest accepted error, in multiples of that on Gaussian rows."""

GAUSSIAN_ERROR = 8e-3
"""The error on Gaussian rows of 4,096 with codes up to 127; with fewer codes it is larger."""

SAMPLED_ROWS = 64
"""Rows that are measured, spread evenly over all rows."""


def verdict_on(x: Tensor, weight: Int8Weight, tolerance: float) -> Literal["w8a8", "w8a16"]:
    """The arithmetic for `x [M, K]`: w8a8 where forward's error is within the tolerance."""
    return "w8a8" if forward_error(x, weight) <= tolerance else "w8a16"


@torch.no_grad()
def forward_error(x: Tensor, weight: Int8Weight) -> float:
    """The error of `x [M, K]` W^T by w8a8, in multiples of that on Gaussian rows."""
    rows = _sample(x)
    return _error(rows, weight, weight, backward=False)


@torch.no_grad()
def backward_error(dy: Tensor, weight: Int8Weight) -> float:
    """The error of `dy [M, N]` W by w8a8, in multiples of that on Gaussian rows."""
    folded = _sample(dy) * (weight.scales / LARGEST_CODE)
    unscaled = Int8Weight(weight.codes, torch.full_like(weight.scales, LARGEST_CODE))
    return _error(folded, weight, unscaled, backward=True)


def _sample(rows: Tensor) -> Tensor:
    step = max(1, rows.shape[0] // SAMPLED_ROWS)
    return rows.detach()[::step][:SAMPLED_ROWS].contiguous()


def _error(rows: Tensor, weight: Int8Weight, multiplied: Int8Weight, *, backward: bool) -> float:
    if not rows.numel():
        return 0.0
    codes, steps = int8_kernels_for(rows, weight).quantize(rows)
    exact = rows.float()
    lost = exact - codes * steps.unsqueeze(1)

    def multiply(matrix: Tensor) -> Tensor:
        if backward:
            return products.backward(matrix, multiplied, transposed=False)
        return products.forward(matrix, multiplied, None, transposed=False)

    of_lost, of_exact = multiply(lost), multiply(exact)
    if backward:
        ratios = (of_lost.norm() / of_exact.norm()).reshape(1)
    else:
        ratios = of_lost.norm(dim=1) / of_exact.norm(dim=1)
    ratios = ratios[ratios.isfinite()]  # rows of zeros, such as padding, have no ratio
    if not ratios.numel():
        return 0.0
    gaussian = GAUSSIAN_ERROR * LARGEST_CODE / max(1, int(codes.abs().max()))
    return float(ratios.square().mean().sqrt()) / gaussian
