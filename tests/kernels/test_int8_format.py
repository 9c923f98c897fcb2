"""8-bit rows: bitsandbytes' very bits, its errors refused by name, and the way back."""

from __future__ import annotations

import pytest
import torch

from peftlab_kernels.int8_format import int8_dequantize, int8_quantize


@pytest.mark.parametrize("shape", [(1, 1), (5, 3), (37, 65), (130, 258), (3, 4098)])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16])
@pytest.mark.parametrize("block", [100, 1 << 20])
def test_the_bits_are_those_of_bitsandbytes(
    shape: tuple[int, int], dtype: torch.dtype, block: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    functional = pytest.importorskip("bitsandbytes").functional
    monkeypatch.setattr("peftlab_kernels.row_blocks.BLOCK_ELEMENTS", block)
    torch.manual_seed(sum(shape))
    # Rows from 1e-6 to 1e4: fp16's subnormals, where rounding first tells, are among them.
    weight = (torch.randn(shape) * torch.logspace(-6, 4, shape[0]).unsqueeze(1)).to(dtype)
    weight[shape[0] // 2] = 0
    codes, scales = int8_quantize(weight)
    theirs, their_scales, _ = functional.int8_vectorwise_quant(weight.to(torch.float16))
    assert torch.equal(codes, theirs)
    assert torch.equal(scales, their_scales)
    assert (codes.dtype, scales.dtype) == (torch.int8, torch.float32)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float64])
def test_the_way_back_is_within_half_a_code(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    weight = torch.randn(40, 100, dtype=torch.float64)
    codes, scales = int8_quantize(weight)
    out = torch.full(weight.shape, torch.nan, dtype=dtype)
    assert int8_dequantize(codes, scales, out) is out
    step = scales.double().unsqueeze(1) / 127
    exact = codes.double() * step
    rounding = 2**-8 if dtype is torch.bfloat16 else 2**-22  # the factors are fp32
    assert ((out.double() - exact).abs() <= rounding * exact.abs()).all()
    # fp16 came first: half a unit in its last place beside half a code.
    assert ((exact - weight).abs() <= step / 2 * (1 + 2**-9) + 2**-11 * weight.abs()).all()


@pytest.mark.parametrize("shape", [(0, 5), (5, 0)])
def test_empty_weights(shape: tuple[int, int]) -> None:
    codes, scales = int8_quantize(torch.empty(shape))
    assert codes.shape == shape
    assert torch.equal(scales, torch.zeros(shape[0]))


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (float("nan"), "it holds nan"),
        (float("inf"), "it holds inf"),
        (1e5, "its largest magnitude is 100000, above fp16's 65,504"),
        (1e-9, "its largest magnitude is 1e-09, which fp16 rounds to zero"),
    ],
)
def test_rows_that_would_be_lost_are_refused_by_name(value: float, words: str) -> None:
    weight = torch.ones(6, 4)
    weight[3] = 0
    weight[4] = 0
    weight[4, 2] = value
    with pytest.raises(ValueError, match=f"row 4 of the weight .*{words}; keep this layer"):
        int8_quantize(weight)


def test_only_floating_matrices() -> None:
    with pytest.raises(ValueError, match="only a floating matrix"):
        int8_quantize(torch.ones(3, 3, dtype=torch.int8))
    with pytest.raises(ValueError, match=r"shape \(3,\)"):
        int8_quantize(torch.ones(3))
