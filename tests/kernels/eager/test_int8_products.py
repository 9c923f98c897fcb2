"""Integer products are exact on every engine, and rows are quantised as the reference does it."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.eager.cpu_arithmetic import why_not_int_mm, why_not_qlinear
from peftlab_kernels.eager.int8_products import (
    ENGINES,
    Engine,
    largest_code,
    multiplier,
    quantize_rows,
)

SHAPES = [(1, 1, 1), (1, 1, 5), (3, 1, 7), (5, 7, 1), (1, 136, 72), (37, 70, 30), (130, 258, 100),
          (0, 8, 12), (3, 0, 5), (3, 5, 0)]  # fmt: skip
"""M, K, N."""


def usable(engine: Engine) -> Engine:
    """The engine; skips where this machine has it not."""
    why_not = {"int_mm": why_not_int_mm, "qlinear": why_not_qlinear}.get(engine)
    if why_not is not None and (reason := why_not()):
        pytest.skip(f"{engine}: {reason}")
    return engine


def random_codes(*shape: int, largest: int = 127) -> Tensor:
    draw = torch.Generator().manual_seed(sum(shape))
    return torch.randint(-largest, largest + 1, shape, generator=draw, dtype=torch.int8)


@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("engine", ENGINES)
def test_products_are_exact(shape: tuple[int, int, int], transposed: bool, engine: Engine) -> None:
    rows, in_features, out_features = shape
    codes = random_codes(out_features, in_features)
    matrix = codes if transposed else codes.T
    left = random_codes(rows, matrix.shape[0], largest=largest_code(usable(engine)))
    multiply = multiplier(engine, codes, transposed=transposed)
    expected = left.long() @ matrix.long()
    for part in (slice(None), slice(0, 2), slice(2, None)):
        actual = multiply(left[part])
        assert actual.dtype in {torch.int32, torch.float32}
        assert torch.equal(actual.long(), expected[part])


@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("sign", [1, -1])
@pytest.mark.parametrize("engine", ENGINES)
def test_the_largest_codes_do_not_saturate(transposed: bool, sign: int, engine: Engine) -> None:
    """Pairs of products are where 16 bits would end first."""
    codes = torch.full((40, 64), sign * 127, dtype=torch.int8)
    left = torch.full((9, 40 if transposed else 64), largest_code(usable(engine)), dtype=torch.int8)
    actual = multiplier(engine, codes, transposed=transposed)(left)
    expected = left.long() @ (codes if transposed else codes.T).long()
    assert torch.equal(actual.long(), expected)


@pytest.mark.parametrize("engine", ENGINES)
def test_sums_that_fp32_cannot_hold_are_rounded_at_most(engine: Engine) -> None:
    codes = random_codes(20, 5000).abs()
    left = random_codes(4, 5000, largest=largest_code(usable(engine))).abs()
    actual = multiplier(engine, codes, transposed=False)(left).double()
    expected = (left.long() @ codes.long().T).double()
    assert engine == "qlinear" or expected.max() > 2**24
    assert ((actual - expected).abs() <= 2**-21 * expected).all()


@pytest.mark.parametrize("shape", [(1, 1), (37, 72), (130, 70)])
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("largest", [127, 63])
def test_rows_are_quantised_to_the_nearest_code(
    shape: tuple[int, int], dtype: torch.dtype, largest: int
) -> None:
    torch.manual_seed(sum(shape))
    x = (torch.randn(shape) * torch.logspace(-3, 3, shape[0]).unsqueeze(1)).to(dtype)
    codes, steps = quantize_rows(x, largest)
    assert (codes.dtype, steps.dtype) == (torch.int8, torch.float32)
    assert torch.equal(codes.abs().amax(1), torch.full(shape[:1], largest, dtype=torch.int8))
    torch.testing.assert_close(steps.double(), x.double().abs().amax(1) / largest)
    rounding = 1e-5 * largest  # of a code, by fp32
    off = (codes - x.double() / steps.double().unsqueeze(1)).abs()
    assert (off <= 0.5 + rounding).all()
    if largest == 127:
        theirs, scales = reference.quantize_rows(x.double())
        assert (codes != theirs).double().mean() < 1e-3  # but for ties
        torch.testing.assert_close(steps.double() * 127, scales)


def test_factors_are_as_if_they_had_been_there() -> None:
    torch.manual_seed(0)
    x, factors = torch.randn(37, 72), torch.rand(72)
    plain, actual = quantize_rows(x * factors, 127), quantize_rows(x, 127, factors)
    assert torch.equal(actual.codes, plain.codes)
    assert torch.equal(actual.steps, plain.steps)
    narrow = quantize_rows(x.bfloat16(), 127, factors)  # the product is not rounded to 16 bits
    assert torch.equal(narrow.codes, quantize_rows(x.bfloat16().float() * factors, 127).codes)


@pytest.mark.parametrize("cached", [1, 72 * 5, 1 << 20])
def test_neither_blocks_nor_strides_matter(cached: int, monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    x = torch.randn(37, 72)
    plain = quantize_rows(x, 127)
    monkeypatch.setattr("peftlab_kernels.row_blocks.CACHED_ELEMENTS", cached)
    for same in (x, x.T.contiguous().T, torch.stack([x, x], 1)[:, 0]):
        actual = quantize_rows(same, 127)
        assert torch.equal(actual.codes, plain.codes)
        assert torch.equal(actual.steps, plain.steps)
        assert actual.codes.is_contiguous()
    expanded = quantize_rows(x[:1].expand(9, -1), 127)
    assert torch.equal(expanded.codes, plain.codes[:1].expand(9, -1))


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_nothing_to_quantise(shape: tuple[int, int]) -> None:
    codes, steps = quantize_rows(torch.empty(shape), 127)
    assert codes.shape == shape
    assert torch.equal(steps, torch.zeros(shape[0]))


def test_zeros_have_no_step_and_what_is_broken_has_a_broken_one() -> None:
    x = torch.ones(5, 8)
    x[1] = 0
    x[2, 3], x[3, 3] = float("nan"), float("-inf")
    codes, steps = quantize_rows(x, 127)
    assert not codes[1].any()
    assert steps[1] == 0
    assert steps[2].isnan()
    assert steps[3].isinf()
    assert torch.equal(steps[[0, 4]], torch.full((2,), 1 / 127))


def test_rows_too_small_for_a_factor_stay_small() -> None:
    """127 by a subnormal number is infinite: the row's codes mean little, but it stays as small."""
    x = torch.full((2, 8), 1e-39)
    x[1] = 1e-45
    codes, steps = quantize_rows(x, 127)
    assert (codes * steps.unsqueeze(1)).abs().max() <= 1.1e-39
