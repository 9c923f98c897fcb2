"""What only a GPU can tell of the 8-bit kernels: compiled, in every configuration of its table.

`PYTHONPATH=.:kernels python -m pytest -m gpu tests/kernels/triton`
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

pytest.importorskip("triton")

from peftlab_kernels.int8_format import Int8Rows, Int8Weight, int8_dequantize, int8_quantize
from peftlab_kernels.triton.configurations import configurations, target_of
from peftlab_kernels.triton.int8_configurations import int8_configurations
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import dequantize, transpose
from peftlab_kernels.triton.lora_backward import cross
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.philox import dropout_of, write_mask
from peftlab_kernels.triton.quantize import quantize_rows
from tests.kernels.triton.int8_layers import DequantizedLayer, Int8Layer
from tests.kernels.triton.layers import BOUND, error, normal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
SHAPES = [(37, 72, 100, 5), (1, 136, 72, 40), (1000, 4096, 1024, 16), (520, 1024, 4096, 64)]
M, K, N = 300, 528, 400


def codes_of(*shape: int) -> Tensor:
    return int8_quantize(normal(*shape))[0].to(CUDA)


def rows_of(*shape: int) -> Int8Rows:
    """Small enough that products of codes alone fit into fp16."""
    return Int8Rows(codes_of(*shape), (normal(shape[0]).abs() * 1e-3).to(CUDA))


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_layers(shape: tuple[int, int, int, int], dtype: torch.dtype, dropout: float) -> None:
    for kind in (Int8Layer, DequantizedLayer):
        kind(shape, dtype=dtype, base="cublas", dropout=dropout, device="cuda").check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [16, 64, 256])
def test_every_tile_of_the_table(dtype: torch.dtype, rank: int) -> None:
    target, x, weight = target_of(CUDA), rows_of(M, K), codes_of(N, K)
    table = int8_configurations(target, dtype)
    scales, bias = normal(N).abs().to(CUDA), normal(N, dtype=dtype).to(CUDA)
    low, up = normal(M, rank, dtype=dtype).to(CUDA), normal(rank, N).to(CUDA)
    thin = low.double() @ up.to(dtype).double()
    sums = x.codes.double() @ weight.double().T * x.steps.double().unsqueeze(1)
    for tile in (*table.products(rank, dropout=False), table.product_ragged):
        y = int8_product(
            x, weight, low, up, dtype=dtype, target=target, scales=scales, bias=bias, tile=tile
        )
        assert error(y, sums * (scales.double() / 127) + bias.double() + thin) < BOUND[dtype], tile
    dropout = dropout_of(torch.tensor([5]), 0.3)
    keep = write_mask(dropout, M, N, CUDA)
    for tile in (*table.products(rank, dropout=True), table.product_ragged):
        y = int8_product(x, weight, low, up, dtype=dtype, target=target, dropout=dropout, tile=tile)
        assert error(y, sums + keep * thin) < BOUND[dtype], tile


@pytest.mark.parametrize("columns", [100, 528, 4096, 14336, 20000])
@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("scaled", [False, True])
def test_rows(columns: int, dtype: torch.dtype, scaled: bool) -> None:
    x = normal(33, columns, dtype=dtype).to(CUDA)
    scales = normal(columns).abs().to(CUDA) if scaled else None
    x[3], x[5, -1] = 0, float("nan")
    codes, steps = quantize_rows(x, scales, target=target_of(CUDA))
    assert steps[3] == 0
    assert not codes[3].any()
    assert steps.isnan().tolist() == [row == 5 for row in range(33)]
    exact = x.double() if scales is None else x.double() * (scales.double() / 127)
    usual = [row for row in range(33) if row not in (3, 5)]
    torch.testing.assert_close(
        steps[usual].double(), exact[usual].abs().amax(dim=1) / 127, rtol=1e-6, atol=0
    )
    distance = exact[usual] / steps[usual].double().unsqueeze(1) - codes[usual].double()
    assert distance.abs().max() <= 0.5 + 1e-4


@pytest.mark.parametrize("dtype", DTYPES)
def test_codes_made_over(dtype: torch.dtype) -> None:
    target, codes = target_of(CUDA), codes_of(N + 1, K + 3)
    assert torch.equal(transpose(codes, target=target), codes.T)
    weight = Int8Weight(codes, normal(N + 1).abs().to(CUDA))
    expected = int8_dequantize(*weight, torch.empty(codes.shape, dtype=dtype, device=CUDA))
    assert torch.equal(dequantize(weight, dtype, target=target), expected)


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_side_pass_of_the_table(dtype: torch.dtype) -> None:
    target, dropout, x = target_of(CUDA), dropout_of(torch.tensor([5]), 0.3), rows_of(M, K)
    exact = x.codes.double() * x.steps.double().unsqueeze(1)
    dropped = exact * write_mask(dropout, M, K, CUDA)
    for rank in configurations(target, dtype).down:
        a, low = normal(rank, K).to(CUDA), normal(M, rank, dtype=dtype).to(CUDA)
        wide_a = a.to(dtype).double()
        of = {"target": target, "factor": 0.5, "dtype": dtype}
        assert error(down_project(x, a, **of), 0.5 * exact @ wide_a.T) < BOUND[dtype], rank
        h = down_project(x, a, dropout=dropout, **of)
        assert error(h, 0.5 * dropped @ wide_a.T) < BOUND[dtype], rank
        assert error(cross(low, x, a, target=target), low.double().T @ exact) < BOUND[dtype], rank
        da = cross(low, x, a, target=target, dropout=dropout)
        assert error(da, low.double().T @ dropped) < BOUND[dtype], rank


def test_two_runs_agree_bit_for_bit() -> None:
    layer = Int8Layer((1000, 4096, 1024, 16), torch.bfloat16, dropout=0.1, device="cuda")
    first, second = layer.forward(), layer.forward()
    assert torch.equal(first.y, second.y)
    for one, other in zip(layer.backward(first), layer.backward(second), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)
