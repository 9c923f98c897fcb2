"""An adapter added in place to another layer's output, against the float64 reference."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.lora_added import lora_added

from .test_lora_linear import error

M, K, N = 37, 72, 100


def tensors(rank: int, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    draw = torch.Generator().manual_seed(0)
    made = {
        "x": torch.randn(M, K, generator=draw, dtype=torch.float64),
        "weight": torch.randn(N, K, generator=draw, dtype=torch.float64) * 0.1,
        "lora_a": torch.randn(rank, K, generator=draw, dtype=torch.float64) * 0.1,
        "lora_b": torch.randn(N, rank, generator=draw, dtype=torch.float64),
        "dy": torch.randn(M, N, generator=draw, dtype=torch.float64),
    }
    return {name: t.to(dtype) for name, t in made.items()}


@pytest.mark.parametrize(
    ("dtype", "bound"),
    [(torch.float64, 1e-12), (torch.float32, 1e-6), (torch.bfloat16, 1e-2), (torch.float16, 1e-2)],
)
@pytest.mark.parametrize("rank", [1, 3, 16])
@pytest.mark.parametrize("adapters", ["as x", "fp32"])
def test_output_and_gradients(dtype: torch.dtype, bound: float, rank: int, adapters: str) -> None:
    t = tensors(rank, dtype)
    wide = {name: tensor.double().clone() for name, tensor in t.items()}
    if adapters == "fp32" and dtype is not torch.float64:
        t["lora_a"], t["lora_b"] = t["lora_a"].float(), t["lora_b"].float()
    leaves = [t[name].requires_grad_() for name in ("x", "lora_a", "lora_b")]
    base = t["x"] @ t["weight"].T
    y = lora_added(base, t["x"], t["lora_a"], t["lora_b"], scaling=0.7)
    assert y.data_ptr() == base.data_ptr()
    actual = torch.autograd.grad(y, leaves, t["dy"])
    adapter: Any = [wide[n] for n in ("x", "weight", "lora_a", "lora_b")]
    assert error(y.detach(), reference.lora_linear(*adapter, scaling=0.7)) < bound
    truth = reference.lora_linear_backward(wide["dy"], *adapter, scaling=0.7)
    for gradient, leaf, expected in zip(actual, leaves, truth, strict=True):
        assert gradient.dtype is leaf.dtype
        assert gradient.is_contiguous()
        assert error(gradient, expected) < bound


def test_dropout_is_the_same_backward() -> None:
    x = torch.ones(500, 40, dtype=torch.float64, requires_grad=True)
    eye = torch.eye(40, dtype=torch.float64)
    y = lora_added(torch.zeros(500, 40).double(), x, eye, eye, dropout=0.25)
    (dx,) = torch.autograd.grad(y.sum(), [x])
    assert torch.equal(y.detach(), dx)
    assert 0.2 < float((y == 0).double().mean()) < 0.3


def test_biases_scalings_and_shapes() -> None:
    t = tensors(3)
    bias = torch.randn(N, dtype=torch.float64, requires_grad=True)
    scaling = torch.tensor([0.7], dtype=torch.float64, requires_grad=True)
    x = t["x"][:36].view(3, 4, 3, K)
    y = lora_added(
        torch.zeros(3, 4, 3, N).double(), x, t["lora_a"], t["lora_b"],
        scaling=scaling, lora_bias=bias,
    )  # fmt: skip
    expected = 0.7 * (x @ t["lora_a"].T @ t["lora_b"].T + bias)
    torch.testing.assert_close(y, expected)
    y.sum().backward()
    torch.testing.assert_close(bias.grad, torch.full((N,), 36 * 0.7).double())
    assert scaling.grad is not None
    empty = lora_added(torch.zeros(0, N).double(), t["x"][:0], t["lora_a"], t["lora_b"])
    assert empty.shape == (0, N)


def test_what_does_not_fit_is_refused() -> None:
    t = tensors(3)
    y = torch.zeros(M, N).double()
    with pytest.raises(ValueError, match="as many rows as x"):
        lora_added(y[:5], t["x"], t["lora_a"], t["lora_b"])
    with pytest.raises(ValueError, match="must be contiguous"):
        lora_added(torch.zeros(N, M).double().T, t["x"], t["lora_a"], t["lora_b"])
    with pytest.raises(ValueError, match="for 72 in_features and 100 out_features"):
        lora_added(y, t["x"], t["lora_b"], t["lora_a"])
    with pytest.raises(ValueError, match="scaling has shape"):
        lora_added(y, t["x"], t["lora_a"], t["lora_b"], scaling=torch.ones(2))
