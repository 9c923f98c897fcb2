"""What only a GPU can tell: the compiled kernels, every configuration of its own table.

`PYTHONPATH=.:kernels python -m pytest -m gpu tests/kernels/triton`
"""

from __future__ import annotations

from typing import Literal

import pytest
import torch

pytest.importorskip("triton")

from peftlab_kernels.protocol import Needs
from peftlab_kernels.triton.backend import TritonKernels
from peftlab_kernels.triton.configurations import configurations, target_of
from peftlab_kernels.triton.lora_backward import cross, dy_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.philox import dropout_of, write_mask
from peftlab_kernels.triton.product import product
from tests.kernels.triton.layers import BOUND, Layer, error, normal

pytestmark = [
    pytest.mark.gpu,
    pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device"),
]
CUDA = torch.device("cuda")
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
BASES: list[Literal["epilogue", "cublas"]] = ["epilogue", "cublas"]
SHAPES = [(37, 72, 100, 5), (1, 136, 72, 40), (1000, 4096, 1024, 16), (520, 1024, 4096, 64)]
M, K, N = 300, 528, 400


def on_gpu(*shape: int, dtype: torch.dtype, seed: int = 0) -> torch.Tensor:
    return normal(*shape, dtype=dtype, seed=seed).to(CUDA)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("base", BASES)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dropout", [0.0, 0.25])
def test_layers(
    shape: tuple[int, int, int, int],
    base: Literal["epilogue", "cublas"],
    dtype: torch.dtype,
    dropout: float,
) -> None:
    for transposed in (False, True):
        Layer(
            shape, dtype=dtype, base=base, dropout=dropout, transposed=transposed, device="cuda"
        ).check()


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("rank", [16, 64, 256])
def test_every_tile_of_the_table(dtype: torch.dtype, rank: int) -> None:
    target = target_of(CUDA)
    table = configurations(target, dtype)
    x, weight, bias = (on_gpu(*s, dtype=dtype) for s in ((M, K), (N, K), (N,)))
    low, up = on_gpu(M, rank, dtype=dtype), on_gpu(rank, N, dtype=torch.float32)
    thin = low.double() @ up.to(dtype).double()
    wide = x.double() @ weight.double().T + bias.double()
    dropout = dropout_of(torch.tensor([5]), 0.3)
    keep = write_mask(dropout, M, N, CUDA)
    for tile in (*table.product, *table.product_transposed, table.product_ragged):
        for stored in (weight, weight.T.contiguous().T):
            y = product(x, stored, low, up, target=target, bias=bias, tile=tile)
            assert error(y, wide + thin) < BOUND[dtype], tile
    for tile in (*table.product_dropout, table.product_ragged):
        y = product(x, weight, low, up, target=target, bias=bias, tile=tile, dropout=dropout)
        assert error(y, keep * (thin + bias.double()) + wide - bias.double()) < BOUND[dtype], tile


@pytest.mark.parametrize("dtype", DTYPES)
def test_every_side_pass_of_the_table(dtype: torch.dtype) -> None:
    target, dropout = target_of(CUDA), dropout_of(torch.tensor([5]), 0.3)
    table = configurations(target, dtype)
    x = on_gpu(M, K, dtype=dtype)
    dropped = x.double() * write_mask(dropout, M, K, CUDA)
    for rank in table.down:
        a, low = on_gpu(rank, K, dtype=torch.float32), on_gpu(M, rank, dtype=dtype)
        wide_a = a.to(dtype).double()
        h = down_project(x, a, factor=0.5, target=target)
        assert error(h, 0.5 * x.double() @ wide_a.T) < BOUND[dtype], rank
        h = down_project(x, a, factor=0.5, target=target, dropout=dropout)
        assert error(h, 0.5 * dropped @ wide_a.T) < BOUND[dtype], rank
        da = cross(low, x, a, target=target, dropout=dropout)
        assert error(da, low.double().T @ dropped) < BOUND[dtype], rank
        db = cross(low, x, a.T.contiguous(), target=target, transposed=True)
        assert error(db, x.double().T @ low.double()) < BOUND[dtype], rank
        if rank in table.dy_pass:
            g, db = dy_pass(x, a.T.contiguous(), low, factor=0.5, target=target)
            assert error(g, 0.5 * x.double() @ wide_a.T) < BOUND[dtype], rank
            assert error(db, x.double().T @ low.double()) < BOUND[dtype], rank
        dx = add_masked(x.clone(), low, a, target=target, dropout=dropout)
        keep = write_mask(dropout, M, K, CUDA)
        assert error(dx, x.double() + keep * (low.double() @ wide_a)) < BOUND[dtype], rank


@pytest.mark.parametrize("base", BASES)
def test_two_runs_agree_bit_for_bit(base: Literal["epilogue", "cublas"]) -> None:
    layer = Layer((1000, 4096, 1024, 16), torch.bfloat16, base=base, dropout=0.1, device="cuda")
    first, second = layer.forward(), layer.forward()
    assert torch.equal(first.y, second.y)
    for one, other in zip(layer.backward(first), layer.backward(second), strict=True):
        assert one is not None
        assert other is not None
        assert torch.equal(one, other)


@pytest.mark.parametrize("base", BASES)
def test_more_than_two_to_the_31_elements(base: Literal["epilogue", "cublas"]) -> None:
    """The last rows of a y of 4.6 GB, and of its dx."""
    m, k, n, r = 70_000, 64, 32_768, 16
    if torch.cuda.mem_get_info()[0] < 24 << 30:
        pytest.skip("needs 24 GiB of GPU memory")
    x, weight, b = (
        torch.randn(s, device=CUDA, dtype=torch.bfloat16) for s in ((m, k), (n, k), (n, r))
    )
    a = torch.randn(r, k, device=CUDA)
    kernels = TritonKernels(base)
    given = {"scaling": 1.0, "dropout": 0.1, "transposed": False}
    out = kernels.forward(x, weight, None, a, b, **given)
    actual = kernels.backward(
        out.y, x, weight, a, b, out.h, out.mask, needs=Needs(True, True, True), **given
    )
    some, h = slice(m - 50, m), out.h
    assert h is not None
    y = x[some].double() @ weight.double().T + h[some].double() @ b.double().T
    assert error(out.y[some], y) < 1e-2
    assert actual.x is not None
    drop = dropout_of(out.mask, 0.1)
    keep = write_mask(drop, m, k, CUDA)[some]
    dy = out.y[some].double()
    dx = dy @ weight.double() + keep * drop.scale * (dy @ b.double() @ a.double())
    assert error(actual.x[some], dx) < 2e-2
