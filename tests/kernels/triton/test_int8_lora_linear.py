"""`TritonInt8Kernels` against float64: values and every gradient, over the codes it made itself."""

from __future__ import annotations

import itertools

import pytest
import torch

from peftlab_kernels.protocol import Needs
from peftlab_kernels.triton.int8_backend import TritonInt8Kernels
from tests.kernels.triton.int8_layers import DequantizedLayer, Int8Layer
from tests.kernels.triton.layers import BOUND, error, normal

AWKWARD = [(37, 72, 100), (70, 40, 168), (1, 136, 72)]


@pytest.mark.parametrize("rank", [3, 5, 16, 64])
@pytest.mark.parametrize("shape", AWKWARD)
def test_values_and_gradients(shape: tuple[int, int, int], rank: int) -> None:
    Int8Layer((*shape, rank)).check()


@pytest.mark.parametrize("rank", [3, 40])
@pytest.mark.parametrize("shape", AWKWARD)
def test_with_dropout(shape: tuple[int, int, int], rank: int) -> None:
    Int8Layer((*shape, rank), dropout=0.3).check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [torch.float32, None])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_sixteen_bits(dtype: torch.dtype, adapter: torch.dtype | None, dropout: float) -> None:
    Int8Layer((37, 72, 100, 5), dtype=dtype, adapter=adapter or dtype, dropout=dropout).check()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_against_the_layer_it_stands_for(dtype: torch.dtype) -> None:
    """Over Gaussian data 8 bits cost y and dx under 2 %."""
    layer = Int8Layer((64, 200, 130, 16), dtype=dtype)
    out = layer.forward()
    actual = layer.backward(out)
    truths = DequantizedLayer.truths(layer, None)
    results = {"y": out.y, "dx": actual.x, "dA": actual.lora_a, "dB": actual.lora_b}
    errors = {name: error(results[name], truth) for name, truth in truths.items()}
    assert all(1e-4 < e < 2e-2 for e in errors.values()), errors


@pytest.mark.parametrize("shape", [(1, 1, 1, 1), (3, 1, 5, 2), (3, 5, 1, 2), (5, 24, 33, 256)])
def test_odd_ends(shape: tuple[int, int, int, int]) -> None:
    Int8Layer(shape, dropout=0.2).check()


def test_rows_with_strides() -> None:
    layer = Int8Layer((37, 72, 100, 5))
    layer.tensors["x"] = normal(37, 144)[:, 7:79]
    layer.tensors["dy"] = normal(100, 37).T
    layer.tensors["bias"] = layer.tensors["bias"].repeat_interleave(3)[::3]
    layer.tensors["codes"] = layer.tensors["codes"].T.contiguous().T
    layer.check()
    layer.tensors["x"] = normal(72).expand(37, 72)
    layer.tensors["dy"] = torch.tensor(0.5).expand(37, 100)
    layer.tensors["scales"] = layer.tensors["scales"].repeat_interleave(2)[::2]
    layer.check()


def test_without_a_bias_and_without_an_adapter() -> None:
    Int8Layer((37, 72, 100, 5), bias=False).check()
    layer = Int8Layer((37, 72, 100, 5), dropout=0.5)
    t, weight = layer.tensors, layer.weight()
    kernels = TritonInt8Kernels()
    rows = kernels.quantize(t["x"])
    out = kernels.forward(
        rows, weight, None, None, None, dtype=torch.float32, scaling=1.0, dropout=0.5
    )
    assert out.h is None
    assert out.mask is None
    x = rows.codes.double() * rows.steps.double().unsqueeze(1)
    assert error(out.y, x @ layer.dequantized().T) < BOUND[torch.float32]
    actual = kernels.backward(
        t["dy"], None, weight, None, None, None, None,
        scaling=1.0, dropout=0.5, needs=Needs(True, False, False),
    )  # fmt: skip
    assert error(actual.x, layer.folded_dy() @ t["codes"].double()) < BOUND[torch.float32]
    assert actual.lora_a is None
    assert actual.lora_b is None


@pytest.mark.parametrize("needs", [Needs(*some) for some in itertools.product((0, 1), repeat=3)])
def test_only_what_is_needed(needs: Needs) -> None:
    layer = Int8Layer((37, 72, 100, 5), dropout=0.3)
    out = layer.forward()
    whole, some = layer.backward(out), layer.backward(out, needs)
    for needed, all_of_it, part in zip(needs, whole, some, strict=True):
        assert (part is not None) == bool(needed)
        if part is not None:
            assert all_of_it is not None
            assert error(part, all_of_it.double()) < 1e-6


@pytest.mark.parametrize("shape", [(0, 8, 12, 2), (3, 0, 5, 2), (3, 5, 0, 2)])
def test_nothing(shape: tuple[int, int, int, int]) -> None:
    m, k, n, r = shape
    layer = Int8Layer(shape, dropout=0.3)
    out = layer.forward()
    torch.testing.assert_close(out.y, layer.tensors["bias"].expand(m, n), rtol=0, atol=0)
    actual = layer.backward(out)
    for gradient, sizes in zip(actual, ((m, k), (r, k), (n, r)), strict=True):
        assert gradient is not None
        assert gradient.shape == sizes
        assert not gradient.any()


def test_small_fp16_gradients_keep_their_digits() -> None:
    """A step is far smaller than its row: g times it alone would fall out of fp16's range."""
    layer = Int8Layer((37, 72, 100, 5), dtype=torch.float16)
    layer.tensors["dy"] = layer.tensors["dy"] * 2.0**-14
    layer.check()


def test_the_bound_is_no_matter_of_course() -> None:
    """One code of x wrong by one is seen."""
    layer = Int8Layer((37, 72, 100, 5))
    out = layer.forward()
    actual = layer.backward(out)
    assert layer.rows is not None
    layer.rows.codes[3, 5] += 1
    assert layer.errors(out, actual)["y"] > 1e-5
    assert layer.errors(out, actual)["dA"] > 1e-5
