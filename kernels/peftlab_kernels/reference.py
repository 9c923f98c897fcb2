"""The ground truth: LoRA's linear layer and its gradients in plain torch, term by term.

Notation, here and in every other file of this package: M rows (tokens), K in-features, N
out-features, R rank, s scaling.

    x [M, K]   W [N, K]   A [R, K]   B [N, R]   bias [N]   D [M, K] = dropout mask / (1 - p)
    h = (D * x) A^T        y  = x W^T + bias + s h B^T
    g = s dy B             dx = dy W + D * (g A)      dA = g^T (D * x)      dB = s dy^T h

W is frozen, so dW is never formed. The twins compute in the dtype they are given: float64 inputs
make them the truth that every faster path is held to.
"""

from __future__ import annotations

from typing import NamedTuple

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
    """Gradients, shaped as what they belong to: `x [M, K]`, `lora_a [R, K]`, `lora_b [N, R]`."""

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
