"""The reference implementation: LoRA's linear layer and its gradients in plain torch, term by term.

Notation, here and in every other file of this package: M rows (tokens), K in_features, N
out_features, R rank, s scaling.

    x [M, K]   W [N, K]   A [R, K]   B [N, R]   bias [N]   D [M, K] = dropout mask / (1 - p)
    h = (D * x) A^T        y  = x W^T + bias + s h B^T
    g = s dy B             dx = dy W + D * (g A)      dA = g^T (D * x)      dB = s dy^T h

W is frozen, so dW is never formed. These functions compute in the dtype of their inputs: with
float64 inputs they are the reference that every faster path is compared with.
"""

from __future__ import annotations

from typing import Literal, NamedTuple

import torch
from torch import Tensor


def lora_linear(
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """`y [M, N]` of `x [M, K]`, `weight [N, K]`, `lora_a [R, K]`, `lora_b [N, R]`, all one dtype.

    `keep [M, K]` is D: the dropout mask already divided by 1 - p; None is no dropout.
    """
    dropped = x if keep is None else keep * x
    y = x @ weight.T + scaling * (dropped @ lora_a.T) @ lora_b.T
    return y if bias is None else y + bias


class LoraGradients(NamedTuple):
    """Gradients in the shapes of their tensors: `x [M, K]`, `lora_a [R, K]`, `lora_b [N, R]`."""

    x: Tensor
    lora_a: Tensor
    lora_b: Tensor


def lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    keep: Tensor | None = None,
) -> LoraGradients:
    """Gradients of `lora_linear` for `dy [M, N]`; shapes and `keep` as there."""
    dropped = x if keep is None else keep * x
    h = dropped @ lora_a.T
    g = scaling * (dy @ lora_b)
    low_rank = g @ lora_a
    return LoraGradients(
        x=dy @ weight + (low_rank if keep is None else keep * low_rank),
        lora_a=g.T @ dropped,
        lora_b=scaling * dy.T @ h,
    )


def quantize_rows(matrix: Tensor) -> tuple[Tensor, Tensor]:
    """Codes -127 .. 127, in the matrix's dtype, and scales [M]: matrix ~ codes * scales / 127."""
    scales = matrix.abs().amax(dim=1)
    factors = 127 / torch.where(scales == 0, torch.ones_like(scales), scales)
    return (matrix * factors.unsqueeze(1)).round(), scales


def dequantize_rows(codes: Tensor, scales: Tensor) -> Tensor:
    """The dequantised matrix, in the scales' dtype."""
    return codes.to(scales.dtype) * (scales / 127).unsqueeze(1)


def int8_lora_linear(
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    arithmetic: Literal["w8a8", "w8a16"],
    bias: Tensor | None = None,
    keep: Tensor | None = None,
) -> Tensor:
    """`lora_linear` over W = codes [N, K] * scales [N] / 127; `w8a8` quantises x by rows as well.

    With `w8a8` the adapter reads the quantised x too: it is the only x that is saved.
    """
    if arithmetic == "w8a8":
        x = dequantize_rows(*quantize_rows(x))
    weight = dequantize_rows(codes, scales)
    return lora_linear(x, weight, lora_a, lora_b, scaling=scaling, bias=bias, keep=keep)


def int8_lora_linear_backward(
    dy: Tensor,
    x: Tensor,
    codes: Tensor,
    scales: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float,
    arithmetic: Literal["w8a8", "w8a16"],
    keep: Tensor | None = None,
) -> LoraGradients:
    """Gradients of `int8_lora_linear`, that of x straight through the quantisation.

    With `w8a8` dy, with W's scales folded in, is quantised by rows for the product with W; the thin
    products read dy unquantised.
    """
    if arithmetic == "w8a8":
        x = dequantize_rows(*quantize_rows(x))
    weight = dequantize_rows(codes, scales)
    exact = lora_linear_backward(dy, x, weight, lora_a, lora_b, scaling=scaling, keep=keep)
    if arithmetic == "w8a16":
        return exact
    folded = dequantize_rows(*quantize_rows(dy * (scales / 127)))
    return exact._replace(x=exact.x - dy @ weight + folded @ codes.to(dy.dtype))
