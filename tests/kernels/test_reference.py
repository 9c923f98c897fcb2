"""The hand-derived gradients of the reference against autograd, in float64."""

from __future__ import annotations

from typing import Literal

import pytest
import torch

from peftlab_kernels.reference import (
    dequantize_rows,
    int8_lora_linear,
    int8_lora_linear_backward,
    lora_linear,
    lora_linear_backward,
    quantize_rows,
)

SHAPES = [(1, 1, 1, 1), (1, 63, 37, 3), (5, 8, 16, 16), (37, 72, 100, 5), (0, 7, 9, 2)]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize(("m", "k", "n", "r"), SHAPES)
def test_gradients_equal_autograd(m: int, k: int, n: int, r: int, dropout: float) -> None:
    draw = torch.Generator().manual_seed(m + 7 * k + 11 * n + r)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, weight, bias = normal(m, k).requires_grad_(), normal(n, k), normal(n)
    lora_a, lora_b = normal(r, k).requires_grad_(), normal(n, r).requires_grad_()
    dy = normal(m, n)
    keep = None
    if dropout:
        keep = (torch.rand(m, k, generator=draw, dtype=torch.float64) >= dropout) / (1 - dropout)

    y = lora_linear(x, weight, lora_a, lora_b, scaling=1.7, bias=bias, keep=keep)
    expected = torch.autograd.grad(y, (x, lora_a, lora_b), dy)
    with torch.no_grad():
        actual = lora_linear_backward(dy, x, weight, lora_a, lora_b, scaling=1.7, keep=keep)

    for got, want in zip(actual, expected, strict=True):
        assert got.shape == want.shape
        torch.testing.assert_close(got, want, rtol=1e-12, atol=1e-12)


def test_forward_is_the_base_plus_a_scaled_low_rank_product() -> None:
    x = torch.tensor([[1.0, 2.0]], dtype=torch.float64)
    weight = torch.tensor([[1.0, 0.0], [0.0, 1.0], [1.0, 1.0]], dtype=torch.float64)
    lora_a = torch.tensor([[3.0, -1.0]], dtype=torch.float64)  # h = 1
    lora_b = torch.tensor([[1.0], [2.0], [3.0]], dtype=torch.float64)
    y = lora_linear(x, weight, lora_a, lora_b, scaling=0.5)
    assert y.tolist() == [[1.5, 3.0, 4.5]]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
@pytest.mark.parametrize("arithmetic", ["w8a16", "w8a8"])
def test_eight_bits_follow_the_layer_over_the_weight_they_stand_for(
    arithmetic: Literal["w8a8", "w8a16"], dropout: float
) -> None:
    """`w8a16` is that layer; `w8a8` differs by two roundings to 8 bits, and not by nothing."""
    m, k, n, r = 37, 72, 100, 5
    draw = torch.Generator().manual_seed(m)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=draw, dtype=torch.float64)

    x, lora_a, lora_b, dy = normal(m, k), normal(r, k) / 9, normal(n, r) / 3, normal(m, n)
    codes, scales = quantize_rows(normal(n, k))
    assert codes.abs().amax() == 127
    assert torch.equal(codes, codes.round())
    weight = dequantize_rows(codes, scales)
    keep = None
    if dropout:
        keep = (torch.rand(m, k, generator=draw, dtype=torch.float64) >= dropout) / (1 - dropout)
    fixed = {"scaling": 1.7, "keep": keep}
    y = int8_lora_linear(x, codes, scales, lora_a, lora_b, arithmetic=arithmetic, **fixed)  # type: ignore[arg-type]
    gradients = int8_lora_linear_backward(
        dy,
        x,
        codes,
        scales,
        lora_a,
        lora_b,
        arithmetic=arithmetic,
        **fixed,  # type: ignore[arg-type]
    )
    exact = lora_linear(x, weight, lora_a, lora_b, **fixed)  # type: ignore[arg-type]
    truths = lora_linear_backward(dy, x, weight, lora_a, lora_b, **fixed)  # type: ignore[arg-type]
    for got, want in zip((y, gradients.x, gradients.lora_a), (exact, truths.x, truths.lora_a),
                         strict=True):  # fmt: skip
        off = float((got - want).norm() / want.norm())
        assert off < 1e-12 if arithmetic == "w8a16" else 1e-4 < off < 2e-2


def test_rows_of_zeros_quantise_to_zeros() -> None:
    codes, scales = quantize_rows(torch.zeros(2, 3, dtype=torch.float64))
    assert not codes.any()
    assert not dequantize_rows(codes, scales).any()
