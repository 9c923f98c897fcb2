"""The weight's codes made over: turned to the bit, dequantised to the bit, and w8a16 over them."""

from __future__ import annotations

from typing import Literal

import pytest
import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Weight, int8_dequantize, int8_quantize
from peftlab_kernels.protocol import Needs
from peftlab_kernels.triton.backend import TritonKernels
from peftlab_kernels.triton.configurations import Target
from peftlab_kernels.triton.int8_weight import ALIGNED, dequantize, transpose
from tests.kernels.triton.int8_layers import DequantizedLayer
from tests.kernels.triton.layers import normal

HERE = Target("interpreter", 1)
SHAPES = [(1, 1), (100, 72), (33, 130), (128, 64)]


def codes_of(*shape: int) -> Tensor:
    return int8_quantize(normal(*shape))[0]


@pytest.mark.parametrize("shape", SHAPES)
def test_turned(shape: tuple[int, int]) -> None:
    codes = codes_of(*shape)
    turned = transpose(codes, target=HERE)
    assert torch.equal(turned, codes.T)
    assert turned.stride(1) == 1
    assert turned.stride(0) % ALIGNED == 0
    apart = codes.repeat_interleave(2, dim=1)[:, ::2]
    assert torch.equal(transpose(apart, target=HERE), codes.T)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
def test_dequantised(shape: tuple[int, int], dtype: torch.dtype) -> None:
    weight = Int8Weight(*int8_quantize(normal(*shape)))
    expected = int8_dequantize(*weight, torch.empty(shape, dtype=dtype))
    actual = dequantize(weight, dtype, target=HERE)
    # To the bit, but that rounding to bf16 in the interpreter makes 1.2e-38 of zero.
    torch.testing.assert_close(actual, expected, rtol=0, atol=2e-38)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("base", ["epilogue", "cublas"])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_w8a16(dtype: torch.dtype, base: Literal["epilogue", "cublas"], dropout: float) -> None:
    """Also what was made over before, for a larger layer, is no matter."""
    for shape in ((37, 72, 100, 5), (33, 40, 24, 16)):
        DequantizedLayer(shape, dtype=dtype, base=base, dropout=dropout).check()


@pytest.mark.parametrize("shape", [(0, 8, 12, 2), (3, 0, 5, 2), (3, 5, 0, 2)])
def test_w8a16_of_nothing(shape: tuple[int, int, int, int]) -> None:
    m, k, n, r = shape
    layer = DequantizedLayer(shape)
    out = layer.forward()
    torch.testing.assert_close(out.y, layer.tensors["bias"].expand(m, n), rtol=0, atol=0)
    actual = layer.backward(out)
    for gradient, sizes in zip(actual, ((m, k), (r, k), (n, r)), strict=True):
        assert gradient is not None
        assert gradient.shape == sizes
        assert not gradient.any()


def test_w8a16_without_an_adapter() -> None:
    layer = DequantizedLayer((37, 72, 100, 5), dtype=torch.float16)
    t, weight, kernels = layer.tensors, layer.weight(), TritonKernels("cublas")
    whole = int8_dequantize(*weight, torch.empty(100, 72, dtype=torch.float16))
    frozen = {"scaling": 1.0, "dropout": 0.0, "transposed": False}
    out = kernels.forward(t["x"], weight, None, None, None, **frozen)
    assert torch.equal(out.y, t["x"] @ whole.T)
    actual = kernels.backward(
        t["dy"], None, weight, None, None, None, None, needs=Needs(True, False, False), **frozen
    )
    assert actual.x is not None
    assert torch.equal(actual.x, t["dy"] @ whole)
