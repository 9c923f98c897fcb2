"""The kernels behind `lora_linear` and its 8-bit twin: autograd, checkpointing, autocast."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.utils.checkpoint import checkpoint

from peftlab_kernels import reference
from peftlab_kernels.dispatch import use_backend
from peftlab_kernels.functional import Int8Arithmetic, int8_lora_linear, lora_linear
from peftlab_kernels.int8_format import int8_quantize
from peftlab_kernels.triton.philox import draw_seed, dropout_of, write_mask
from tests.kernels.triton.layers import error, normal

DROPOUT = 0.3


def leaves(dtype: torch.dtype = torch.float32) -> dict[str, Tensor]:
    return {
        "x": normal(2, 17, 72, dtype=dtype).requires_grad_(),
        "lora_a": normal(5, 72).requires_grad_(),
        "lora_b": normal(100, 5).requires_grad_(),
    }


def layer(weight: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor) -> Tensor:
    return lora_linear(x, weight, lora_a, lora_b, scaling=0.5, dropout=DROPOUT)


def gradients(y: Tensor, tensors: dict[str, Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y, list(tensors.values()), normal(*y.shape, dtype=y.dtype, seed=1))


def test_autograd_against_float64() -> None:
    weight, given = normal(100, 72), leaves()
    torch.manual_seed(3)
    with use_backend("triton"):
        y = layer(weight, **given)
        actual = gradients(y, given)

    torch.manual_seed(3)
    drop = dropout_of(draw_seed(), DROPOUT)
    keep = write_mask(drop, 34, 72, torch.device("cpu")).double().view(2, 17, 72) * drop.scale
    wide = {name: t.detach().double().requires_grad_() for name, t in given.items()}
    low = (keep * wide["x"]) @ wide["lora_a"].T @ wide["lora_b"].T
    truth = wide["x"] @ weight.double().T + 0.5 * low
    assert error(y.detach(), truth.detach()) < 1e-6
    expected = torch.autograd.grad(truth, list(wide.values()), normal(2, 17, 100, seed=1).double())
    for got, want in zip(actual, expected, strict=True):
        assert error(got, want) < 1e-6


@pytest.mark.parametrize("arithmetic", ["w8a8", "w8a16"])
def test_autograd_over_8_bits(arithmetic: Int8Arithmetic) -> None:
    """The codes of float64 and ours may differ where two are as near; y and gradients hardly do."""
    codes, scales = int8_quantize(normal(100, 72))
    given = leaves()
    torch.manual_seed(3)
    with use_backend("triton"):
        y = int8_lora_linear(
            given["x"], codes, scales, given["lora_a"], given["lora_b"],
            scaling=0.5, dropout=DROPOUT, arithmetic=arithmetic,
        )  # fmt: skip
        actual = gradients(y, given)
    torch.manual_seed(3)
    drop = dropout_of(draw_seed(), DROPOUT)
    keep = write_mask(drop, 34, 72, torch.device("cpu")).double() * drop.scale
    wide = {name: t.detach().double() for name, t in given.items()}
    layer = (wide["x"].view(34, 72), codes, scales.double(), wide["lora_a"], wide["lora_b"])
    truth = reference.int8_lora_linear(*layer, scaling=0.5, arithmetic=arithmetic, keep=keep)
    bound = 1e-3 if arithmetic == "w8a8" else 1e-6
    assert error(y.detach().view(34, 100), truth) < bound
    expected = reference.int8_lora_linear_backward(
        normal(2, 17, 100, seed=1).double().view(34, 100), *layer,
        scaling=0.5, arithmetic=arithmetic, keep=keep,
    )  # fmt: skip
    for got, want in zip(actual, expected, strict=True):
        assert error(got.view(want.shape), want) < bound


@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointing_draws_the_same_mask_again(reentrant: bool) -> None:
    weight, given = normal(100, 72), leaves()
    with use_backend("triton"):
        torch.manual_seed(3)
        plain = layer(weight, **given)
        expected = gradients(plain, given)
        torch.manual_seed(3)
        y = checkpoint(layer, weight, *given.values(), use_reentrant=reentrant)
        torch.manual_seed(99)
        for tensor in given.values():
            tensor.grad = None
        y.backward(normal(*y.shape, seed=1))
    assert torch.equal(y, plain)
    for tensor, want in zip(given.values(), expected, strict=True):
        assert tensor.grad is not None
        assert torch.equal(tensor.grad, want)


def test_autocast() -> None:
    """x goes to bf16, the fp32 weight and adapter stay as they are outside, and so do gradients."""
    weight, given = normal(100, 72), leaves()
    torch.manual_seed(3)
    with use_backend("triton"), torch.autocast("cpu", torch.bfloat16):
        y = layer(weight, **given)
    assert y.dtype is torch.bfloat16
    with use_backend("triton"):
        torch.manual_seed(3)
        whole = layer(weight, **given)
    assert error(y.detach(), whole.detach().double()) < 1e-2
    for got, want in zip(gradients(y, given), gradients(whole, given), strict=True):
        assert got.dtype is torch.float32
        assert error(got, want.double()) < 2e-2
