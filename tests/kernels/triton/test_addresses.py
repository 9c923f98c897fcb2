"""Addresses past 2^31 elements: a tile may begin anywhere, offsets inside one are 32-bit.

The tensors are views with rows far apart of a storage whose pages are hardly ever touched.
"""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows, Int8Weight, int8_quantize
from peftlab_kernels.triton import lora_backward, lora_forward, masked_addition
from peftlab_kernels.triton.configurations import Strip, Target, Tile
from peftlab_kernels.triton.dot import interpreting
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import dequantize, transpose, transpose_kernel
from peftlab_kernels.triton.philox import dropout_of
from peftlab_kernels.triton.product import product, product_kernel
from peftlab_kernels.triton.quantize import quantize_rows
from tests.kernels.triton.layers import error, normal

HERE = Target("interpreter", 4)
APART = 1 << 24
"""128 rows are 2^31 elements: the last block of rows begins beyond, in a share of its own."""
ROWS = 130


def far(matrix: Tensor) -> Tensor:
    """The matrix with its rows APART elements from one another."""
    rows, columns = matrix.shape
    assert (rows - 1) * APART + columns > 2**31
    storage = torch.UntypedStorage(((rows - 1) * APART + columns) * matrix.element_size())
    base = torch.tensor([], dtype=matrix.dtype).set_(storage)
    return base.as_strided((rows, columns), (APART, 1)).copy_(matrix)


@pytest.fixture(scope="module")
def x() -> Tensor:
    return far(normal(ROWS, 24, dtype=torch.float16))


def test_down_projection(x: Tensor) -> None:
    a, strip = normal(3, 24), Strip(16, 16, 4, 1)
    h = lora_forward.down_project(x, a, factor=1.0, target=HERE, strip=strip)
    assert error(h[:, :3], x.double() @ a.double().T) < 1e-2


def test_cross(x: Tensor) -> None:
    low, strip = normal(ROWS, 16, dtype=torch.float16), Strip(16, 16, 4, 1)
    da = lora_backward.cross(low, x, normal(16, 24), target=HERE, strip=strip)
    assert error(da, low.double().T @ x.double()) < 1e-2


def test_dy_pass(x: Tensor) -> None:
    b, h, strip = normal(24, 3), normal(ROWS, 16, dtype=torch.float16), Strip(16, 16, 4, 1)
    g, db = lora_backward.dy_pass(x, b, h, factor=1.0, target=HERE, strip=strip)
    assert error(g[:, :3], x.double() @ b.double()) < 1e-2
    assert error(db, x.double().T @ h[:, :3].double()) < 1e-2


@pytest.mark.parametrize("columns_first", [False, True])
def test_product_reads(x: Tensor, columns_first: bool) -> None:
    """x and the weight both far, the weight in either direction."""
    tile = Tile(16, 16, 16, 4, 1)
    if columns_first:
        small = normal(5, ROWS, dtype=torch.float16)
        y = product(small, x.T, target=HERE, tile=tile)
        assert error(y, small.double() @ x.double()) < 1e-2
    else:
        y = product(x, x, target=HERE, tile=tile)
        assert error(y, x.double() @ x.double().T) < 1e-2


@pytest.fixture(scope="module")
def codes() -> Tensor:
    return far(int8_quantize(normal(ROWS, 24))[0])


def test_quantising(x: Tensor) -> None:
    codes, steps = quantize_rows(x, target=HERE)
    assert error(codes * steps.unsqueeze(1), x.double()) < 1e-2


def test_passes_over_codes(codes: Tensor) -> None:
    rows, strip, low = Int8Rows(codes, normal(ROWS)), Strip(16, 16, 4, 1), normal(ROWS, 16)
    exact = codes.double() * rows.steps.double().unsqueeze(1)
    h = lora_forward.down_project(
        rows, normal(3, 24), factor=1.0, dtype=torch.float32, target=HERE, strip=strip
    )
    assert error(h[:, :3], exact @ normal(3, 24).double().T) < 1e-6
    da = lora_backward.cross(low, rows, normal(16, 24), target=HERE, strip=strip)
    assert error(da, low.double().T @ exact) < 1e-6


def test_int8_product_reads(codes: Tensor) -> None:
    rows = Int8Rows(codes, normal(ROWS))
    y = int8_product(rows, codes, dtype=torch.float32, target=HERE, tile=Tile(16, 16, 32, 4, 1))
    exact = codes.double() * rows.steps.double().unsqueeze(1)
    assert error(y, exact @ codes.double().T) < 1e-6


def test_codes_made_over(codes: Tensor) -> None:
    strip, scales = Strip(16, 16, 4, 1), normal(ROWS)
    assert torch.equal(transpose(codes, target=HERE, strip=strip), codes.T)
    whole = dequantize(Int8Weight(codes, scales), torch.float32, target=HERE, strip=strip)
    assert error(whole, codes.double() * (scales.double() / 127).unsqueeze(1)) < 1e-6


def test_turned_codes_are_written_far(codes: Tensor) -> None:
    turned, near = far(torch.zeros(ROWS, 24, dtype=torch.int8)), codes.T.contiguous()
    transpose_kernel[(2, 9)](near, turned, 24, ROWS, ROWS, APART, BN=16, BK=16)
    assert torch.equal(turned, codes)


def test_product_writes(x: Tensor) -> None:
    y, weight = far(torch.zeros(ROWS, 24, dtype=torch.float16)), normal(24, 24, dtype=x.dtype)
    product_kernel[(18,)](
        x, weight, None, None, None, y, ROWS, 24, 24, 0, APART, 24, 1, 0, 0, 0, APART, 0, 0, 0,
        RANK=0, CHUNK=0, DROPOUT=False, HAS_BIAS=False, EVEN_P=False, EVEN_Q=False,
        BM=16, BN=16, BK=16, GROUP=8, PRECISION="ieee", UPCAST=interpreting(),
    )  # fmt: skip
    assert error(y, x.double() @ weight.double().T) < 1e-2


def test_adding_in_place() -> None:
    dx = far(torch.zeros(ROWS, 24, dtype=torch.float16))
    g, a = normal(ROWS, 16, dtype=torch.float16), normal(3, 24)
    dropout = dropout_of(torch.tensor([5]), 0.0)
    masked_addition.add_masked_kernel[(9, 2)](
        g, a, dx, ROWS, 24, 3, 16, 24, APART, dropout.seed_low, dropout.seed_high,
        dropout.threshold, RANK=16, CHUNK=16, BM=16, BK=16, PRECISION="ieee",
        UPCAST=interpreting(),
    )  # fmt: skip
    assert error(dx, g[:, :3].double() @ a.double()) < 1e-2
