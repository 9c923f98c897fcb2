"""`TritonKernels` against float64: values and every gradient, dtypes, layouts, strides, nothing."""

from __future__ import annotations

import itertools
from typing import Literal

import pytest
import torch

from peftlab_kernels import reference
from peftlab_kernels.protocol import LoraForward, Needs
from peftlab_kernels.triton.backend import TritonKernels
from peftlab_kernels.triton.configurations import Target
from tests.kernels.triton.layers import BOUND, SCALING, Layer, error, normal

AWKWARD = [(37, 72, 100), (70, 40, 168), (1, 136, 72)]
BASES: tuple[Literal["epilogue", "cublas"], ...] = ("epilogue", "cublas")


@pytest.mark.parametrize("rank", [1, 3, 5, 16, 40, 64])
@pytest.mark.parametrize("shape", AWKWARD)
def test_values_and_gradients(shape: tuple[int, int, int], rank: int) -> None:
    Layer((*shape, rank)).check()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", AWKWARD)
@pytest.mark.parametrize("rank", [3, 40])
def test_with_dropout(base: Literal["epilogue", "cublas"], shape: tuple[int, int, int],
                      rank: int) -> None:  # fmt: skip
    Layer((*shape, rank), base=base, dropout=0.3).check()


@pytest.mark.parametrize(
    ("dropout", "transposed", "base"), list(itertools.product((0.0, 0.4), (False, True), BASES))
)
def test_layouts(dropout: float, transposed: bool, base: Literal["epilogue", "cublas"]) -> None:
    """Conv1D keeps its weight as [K, N]."""
    layer = Layer((37, 72, 100, 5), transposed=transposed, base=base, dropout=dropout)
    assert layer.tensors["weight"].shape == ((72, 100) if transposed else (100, 72))
    layer.check()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("adapter", [torch.float32, None])
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_sixteen_bits(dtype: torch.dtype, adapter: torch.dtype | None, dropout: float) -> None:
    """PEFT keeps fp32 adapters on a 16-bit base unless it is told not to."""
    Layer((37, 72, 100, 5), dtype=dtype, adapter=adapter or dtype, dropout=dropout).check()


@pytest.mark.parametrize("transposed", [False, True])
def test_fp32_activations_over_a_16_bit_weight(transposed: bool) -> None:
    Layer((37, 72, 100, 5), weight_dtype=torch.bfloat16, transposed=transposed).check()


def test_an_fp32_weight_under_16_bit_activations() -> None:
    """Autocast casts activations alone."""
    layer = Layer((37, 72, 100, 5), dtype=torch.bfloat16, weight_dtype=torch.float32)
    layer.check()


@pytest.mark.parametrize("name", ["sm_80", "sm_86", "sm_90", "sm_120"])
@pytest.mark.parametrize("shape", [(37, 72, 100, 5), (130, 48, 176, 16)])
@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_configurations_of_each_target(
    name: str, shape: tuple[int, int, int, int], dropout: float
) -> None:
    """Rows of 100 numbers are ragged; those of 48 and 176 go by descriptors on sm_90."""
    Layer(shape, dtype=torch.bfloat16, target=Target(name, 4), dropout=dropout).check()


def test_rank_256_and_beyond_one_program() -> None:
    Layer((5, 24, 33, 256), dropout=0.2).check()
    Layer((5, 24, 33, 200), target=Target("sm_80", 2)).check()


@pytest.mark.parametrize("rank", [16, 64])
def test_sums_over_many_programs(rank: int) -> None:
    """More processors than blocks of rows: every sum is split."""
    Layer((100, 300, 170, rank), target=Target("interpreter", 64), dropout=0.1).check()


def test_rows_with_strides() -> None:
    layer = Layer((37, 72, 100, 5))
    wide = normal(37, 144)
    layer.tensors["x"] = wide[:, 7:79]
    layer.tensors["dy"] = normal(100, 37).T
    layer.check()
    layer.tensors["x"] = normal(72).expand(37, 72)
    layer.tensors["dy"] = torch.tensor(0.5).expand(37, 100)
    layer.tensors["weight"] = normal(200, 144)[::2, ::2]
    layer.check()


def test_one_column_and_one_row() -> None:
    for shape in ((1, 1, 1, 1), (3, 1, 5, 2), (3, 5, 1, 2)):
        Layer(shape, dropout=0.2).check()


@pytest.mark.parametrize("base", BASES)
def test_a_bias_of_any_strides(base: Literal["epilogue", "cublas"]) -> None:
    layer = Layer((37, 72, 100, 5), base=base)
    apart = layer.tensors["bias"].repeat_interleave(3)[::3]
    assert apart.stride() == (3,)
    layer.tensors["bias"] = apart
    layer.check()
    layer.tensors["bias"] = apart[:1].expand(100)
    layer.check()


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", [(0, 8, 12, 2), (3, 0, 5, 2), (3, 5, 0, 2)])
def test_nothing(base: Literal["epilogue", "cublas"], shape: tuple[int, int, int, int]) -> None:
    m, k, n, r = shape
    layer = Layer(shape, base=base, dropout=0.3)
    out = layer.forward()
    actual = layer.backward(LoraForward(out.y, out.h, out.mask))
    expected = layer.tensors["bias"].expand(m, n)
    torch.testing.assert_close(out.y, expected, rtol=0, atol=0)
    for gradient, sizes in zip(actual, ((m, k), (r, k), (n, r)), strict=True):
        assert gradient is not None
        assert gradient.shape == sizes
        assert not gradient.any()


@pytest.mark.parametrize("needs", [Needs(*some) for some in itertools.product((0, 1), repeat=3)])
@pytest.mark.parametrize("rank", [5, 64])
def test_only_what_is_needed(needs: Needs, rank: int) -> None:
    """Rank 64 reads dy twice where it needs both g and dB."""
    layer = Layer((37, 72, 100, rank), dropout=0.3)
    out = layer.forward()
    whole, some = layer.backward(out), layer.backward(out, needs)
    for needed, all_of_it, part in zip(needs, whole, some, strict=True):
        assert (part is not None) == bool(needed)
        if part is not None:
            assert all_of_it is not None
            assert error(part, all_of_it.double()) < 1e-6


@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("transposed", [False, True])
def test_the_frozen_layer(base: Literal["epilogue", "cublas"], transposed: bool) -> None:
    x, weight, dy = normal(37, 72), normal(100, 72), normal(37, 100, seed=1)
    stored = weight.T.contiguous() if transposed else weight
    kernels = TritonKernels(base)
    out = kernels.forward(
        x, stored, None, None, None, scaling=1.0, dropout=0.5, transposed=transposed
    )
    assert out.h is None
    assert out.mask is None
    assert error(out.y, x.double() @ weight.double().T) < BOUND[torch.float32]
    actual = kernels.backward(
        dy, None, stored, None, None, None, None,
        scaling=1.0, dropout=0.5, transposed=transposed, needs=Needs(True, False, False),
    )  # fmt: skip
    assert error(actual.x, dy.double() @ weight.double()) < BOUND[torch.float32]
    assert actual.lora_a is None
    assert actual.lora_b is None


@pytest.mark.parametrize("base", BASES)
def test_two_runs_agree_bit_for_bit(base: Literal["epilogue", "cublas"]) -> None:
    layer = Layer((100, 300, 170, 16), base=base, dropout=0.3, target=Target("interpreter", 64))
    first, second = layer.forward(), layer.forward()
    assert torch.equal(first.y, second.y)
    assert first.mask is not None
    assert second.mask is not None
    assert torch.equal(first.mask, second.mask)
    for one, other in zip(layer.backward(first), layer.backward(second), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


def test_both_bases_drop_the_same() -> None:
    """The choice between them is made by the clock, so it may not change what is trained."""
    results = []
    for base in BASES:
        layer = Layer((37, 72, 100, 5), base=base, dropout=0.3)
        out = layer.forward()
        results.append((out.y, *layer.backward(out)))
    for one, other in zip(*results, strict=True):
        assert error(one, other.double()) < 1e-6


def test_the_bound_is_no_matter_of_course() -> None:
    """One element of A wrong in its sixth digit is seen."""
    layer = Layer((37, 72, 100, 5))
    out = layer.forward()
    actual = layer.backward(out)
    layer.tensors["lora_a"][2, 3] *= 1 + 1e-3
    assert layer.errors(out, actual)["y"] > 1e-6
    y = reference.lora_linear(
        *(layer.tensors[name].double() for name in ("x", "weight", "lora_a", "lora_b")),
        scaling=SCALING,
    )
    assert error(out.y, y) > 1e-3, "the bias is missing"
