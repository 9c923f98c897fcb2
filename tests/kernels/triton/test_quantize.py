"""Rows in 8 bits against float64: codes, steps, folded scales, and rows that are no numbers."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows
from peftlab_kernels.triton.configurations import Target
from peftlab_kernels.triton.int8_backend import TritonInt8Kernels
from peftlab_kernels.triton.int8_configurations import Row
from peftlab_kernels.triton.quantize import quantize_rows
from tests.kernels.triton.layers import normal

HERE = Target("interpreter", 1)


def check(actual: Int8Rows, exact: Tensor) -> None:
    """Every code is the nearest, but where two are as near as fp32 can tell."""
    steps = exact.abs().amax(dim=1) / 127
    torch.testing.assert_close(actual.steps.double(), steps, rtol=1e-6, atol=0)
    inverse = torch.where(steps == 0, torch.zeros_like(steps), 1 / steps)
    distance = (exact * inverse.unsqueeze(1) - actual.codes.double()).abs()
    assert distance.max() <= 0.5 + 1e-4
    largest = exact.abs().argmax(dim=1, keepdim=True)
    assert torch.where(steps == 0, 127, actual.codes.gather(1, largest)[:, 0].abs()).eq(127).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("columns", [1, 23, 64, 100, 128, 300])
@pytest.mark.parametrize("scaled", [False, True])
def test_codes_and_steps(dtype: torch.dtype, columns: int, scaled: bool) -> None:
    """Rows of 300 take more than one block."""
    x = normal(9, columns, dtype=dtype) * 3
    x[4] = 0
    scales = normal(columns).abs() if scaled else None
    actual = quantize_rows(x, scales, target=HERE)
    exact = x.double() if scales is None else x.double() * (scales.double() / 127)
    check(actual, exact)
    assert not actual.codes[4].any()
    assert actual.steps[4] == 0


def test_halves_go_to_even() -> None:
    x = torch.tensor([[127.0, 0.5, 1.5, 2.5, -0.5, -1.5, -2.5, -127.0]])
    actual = quantize_rows(x, target=HERE)
    assert actual.codes.tolist() == [[127, 0, 2, 2, 0, -2, -2, -127]]
    assert actual.steps.tolist() == [1.0]


@pytest.mark.parametrize("magnitude", [1e-30, 1e30])
def test_any_magnitude(magnitude: float) -> None:
    check(quantize_rows(normal(3, 40) * magnitude, target=HERE), normal(3, 40).double() * magnitude)


def test_what_is_too_small_for_a_factor_is_zero() -> None:
    assert not quantize_rows(torch.full((1, 40), 1e-38), target=HERE).codes.any()


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
@pytest.mark.parametrize("columns", [40, 300])
@pytest.mark.parametrize("at", [0, -1])
def test_what_is_no_number_stays_in_its_row(columns: int, at: int) -> None:
    """numpy warns, which computes here."""
    x = normal(5, columns)
    plain = quantize_rows(x, target=HERE)
    x[1, at], x[3, at] = float("nan"), float("-inf")
    x[3, at // 2] = float("nan") if at else x[3, at // 2]
    actual = quantize_rows(x, target=HERE)
    assert actual.steps.isfinite().tolist() == [True, False, True, False, True]
    for row in (0, 2, 4):
        assert torch.equal(actual.codes[row], plain.codes[row])


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")
def test_such_a_row_reaches_y() -> None:
    from tests.kernels.triton.int8_layers import Int8Layer

    layer = Int8Layer((37, 72, 100, 5))
    layer.tensors["x"][7, 3] = float("nan")
    out = layer.forward()
    assert not out.y[7].isfinite().any()
    assert out.y[:7].isfinite().all()
    assert out.y[8:].isfinite().all()


def test_strides() -> None:
    kernels, x = TritonInt8Kernels(), normal(40, 50)
    for view in (x.T, x[:, 3:47], x[::3], x[:1].expand(7, 50), normal(5, 1)):
        actual, whole = kernels.quantize(view), kernels.quantize(view.contiguous())
        assert torch.equal(actual.codes, whole.codes)
        assert torch.equal(actual.steps, whole.steps)


def test_nothing() -> None:
    for shape in ((0, 5), (5, 0)):
        actual = TritonInt8Kernels().quantize(torch.empty(shape))
        assert actual.codes.shape == shape
        assert actual.steps.tolist() == [0.0] * shape[0]


def test_every_block_makes_the_same() -> None:
    x = normal(5, 200, dtype=torch.bfloat16)
    whole = quantize_rows(x, target=HERE, row=Row(256, 4))
    for columns in (32, 64, 128):
        parts = quantize_rows(x, target=HERE, row=Row(columns, 4))
        assert torch.equal(whole.codes, parts.codes)
        assert torch.equal(whole.steps, parts.steps)
