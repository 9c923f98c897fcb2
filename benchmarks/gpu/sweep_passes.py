"""The passes of a LoRA layer that `sweep` times, and the candidates of each."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from benchmarks.gpu.limits import Ceilings
from peftlab_kernels.int8_format import Int8Weight, int8_quantize
from peftlab_kernels.triton.configurations import Strip, Target, Tile, target_of
from peftlab_kernels.triton.int8_configurations import Row
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import dequantize, transpose
from peftlab_kernels.triton.lora_backward import cross, dy_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.philox import NO_DROPOUT, dropout_of
from peftlab_kernels.triton.product import product
from peftlab_kernels.triton.quantize import quantize_rows


@dataclass(frozen=True, slots=True)
class Size:
    """M tokens, K columns of x, N of y, rank R."""

    m: int
    k: int
    n: int
    r: int = 16


@dataclass(frozen=True, slots=True)
class Pass:
    """One kernel at one size; the candidate None is the table's own configuration."""

    name: str
    size: Size
    call: Callable[..., Any]
    knob: str
    """The argument that takes a candidate."""
    flops: float
    moved: float
    """Bytes that must be read or written."""
    candidates: Sequence[Any] = ()
    peers: tuple[tuple[str, Callable[[], object]], ...] = ()

    def run(self, candidate: Any) -> tuple[Tensor, ...]:
        """The results by this candidate."""
        result = self.call(**{self.knob: candidate})
        return result if isinstance(result, tuple) else (result,)

    def least(self, ceilings: Ceilings) -> float:
        """The lower limit in seconds, by arithmetic or by bytes."""
        return max(self.flops / ceilings.flops, self.moved / ceilings.bandwidth)


SIZES = (
    Size(8192, 4096, 14336), Size(8192, 14336, 4096), Size(8192, 4096, 4096), Size(2048, 4096, 4096)
)  # fmt: skip
TINY = (Size(33, 64, 96),)

PRODUCTS = tuple(
    Tile(*sizes, tma=True)
    for sizes in (
        (128, 256, 64, 8, 3), (128, 256, 64, 8, 4), (256, 128, 64, 8, 3), (256, 128, 64, 8, 4),
        (128, 128, 64, 8, 4), (128, 128, 64, 4, 4), (128, 128, 64, 4, 3), (128, 128, 64, 4, 5),
        (128, 128, 128, 8, 3), (64, 256, 64, 4, 4), (64, 256, 64, 4, 3), (64, 128, 64, 4, 4),
    )
)  # fmt: skip
INT8_PRODUCTS = tuple(
    Tile(*sizes, tma=True)
    for sizes in (
        (128, 256, 128, 8, 3), (128, 256, 128, 8, 4), (256, 128, 128, 8, 3),
        (256, 128, 128, 8, 4), (128, 256, 64, 8, 4), (128, 128, 128, 8, 4), (128, 128, 128, 4, 4),
        (128, 128, 256, 8, 3), (64, 256, 128, 4, 4), (64, 128, 128, 4, 4),
    )
)  # fmt: skip
DOWN = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 128, 4, 3), (64, 64, 4, 3), (64, 64, 4, 5), (64, 128, 4, 5), (64, 256, 4, 3),
        (64, 256, 8, 3), (128, 128, 8, 3), (128, 64, 4, 4), (128, 64, 8, 4), (32, 128, 4, 4),
        (32, 256, 4, 3), (16, 256, 4, 4),
    )
)  # fmt: skip
CROSS = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 128, 4, 3), (64, 128, 4, 5), (32, 128, 4, 3), (32, 128, 4, 5), (64, 64, 4, 4),
        (128, 128, 8, 3), (64, 256, 8, 3), (32, 256, 4, 4), (128, 64, 4, 3), (64, 128, 8, 4),
    )
)  # fmt: skip
DY = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 256, 8, 3), (64, 256, 8, 2), (64, 128, 4, 3), (64, 128, 8, 3), (128, 128, 8, 3),
        (32, 256, 8, 4), (64, 256, 4, 3), (128, 256, 8, 2), (32, 256, 4, 4),
    )
)  # fmt: skip
ADD = tuple(
    Strip(*sizes)
    for sizes in (
        (64, 64, 4, 2), (64, 128, 4, 2), (64, 128, 8, 2), (128, 128, 8, 2), (32, 256, 4, 2),
        (64, 256, 8, 2),
    )
)  # fmt: skip
ROWS = tuple(
    Row(columns, warps)
    for columns, warps in (
        (1024, 4), (2048, 4), (4096, 4), (4096, 8), (4096, 16), (16384, 8), (16384, 16),
        (16384, 32),
    )
)  # fmt: skip
TRANSPOSE = tuple(
    Strip(*sizes)
    for sizes in ((128, 128, 8, 1), (64, 64, 4, 1), (128, 64, 4, 1), (64, 128, 4, 1),
                  (128, 128, 4, 1), (64, 256, 8, 1), (256, 64, 8, 1))
)  # fmt: skip
DEQUANTIZE = tuple(
    Strip(*sizes)
    for sizes in ((16, 512, 8, 1), (16, 512, 4, 1), (8, 1024, 8, 1), (8, 512, 4, 1),
                  (4, 1024, 4, 1), (32, 256, 8, 1))
)  # fmt: skip


def passes(size: Size, device: str) -> Iterator[Pass]:
    """Every pass of a layer of this size."""
    m, k, n, r = size.m, size.k, size.n, size.r
    bf16, target = torch.bfloat16, target_of(torch.device(device))
    draw = torch.Generator(device).manual_seed(7)

    def normal(*shape: int) -> Tensor:
        return torch.randn(shape, generator=draw, device=device).mul_(0.02).to(bf16)

    x, dy, w = normal(m, k), normal(m, n), normal(n, k)
    a, b = normal(r, k).float(), normal(n, r).float()
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    h = down_project(x, a, factor=2.0, target=target)
    g = down_project(dy, b.T.contiguous(), factor=2.0, target=target)
    yield from _products(size, target, (x, dy, w, a, b, h, g))
    bytes_x, bytes_dy = 2 * m * k, 2 * m * n
    for drop, words in ((NO_DROPOUT, ""), (dropout, ", dropout")):
        down = partial(down_project, x, a, factor=2.0, dropout=drop, target=target)
        yield Pass("down x" + words, size, down, "strip", 2 * m * k * r, bytes_x, DOWN)
        across = partial(cross, g, x, a, dropout=drop, target=target)
        yield Pass("cross g x" + words, size, across, "strip", 2 * m * k * r, bytes_x, CROSS)
    if r <= 32:
        both = partial(dy_pass, dy, b, h, factor=2.0, target=target)
        yield Pass("dy pass", size, both, "strip", 4 * m * n * r, bytes_dy, DY)
    down = partial(down_project, dy, b.T, factor=2.0, target=target)
    yield Pass("down dy", size, down, "strip", 2 * m * n * r, bytes_dy, DOWN)
    across = partial(cross, h, dy, b, transposed=True, target=target)
    yield Pass("cross h dy", size, across, "strip", 2 * m * n * r, bytes_dy, CROSS)
    made = torch.zeros(m, k, dtype=bf16, device=device)

    def added(strip: Any) -> Tensor:
        return add_masked(made.clone(), g, a, dropout=dropout, target=target, strip=strip)

    yield Pass("add masked, copied", size, added, "strip", 2 * m * k * r, 8 * m * k, ADD)
    yield from _eight_bits(size, target, (x, dy, w, a, b, h, g))


def _products(size: Size, target: Target, made: tuple[Tensor, ...]) -> Iterator[Pass]:
    m, k, n, r = size.m, size.k, size.n, size.r
    x, dy, w, a, b, h, g = made
    flops, moved = 2 * m * n * k, 2 * (m * n + m * k + n * k)
    up, down = b.to(x.dtype).T, a.to(x.dtype)
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    y = partial(product, x, w, h, b.T, target=target)
    yield Pass(
        "product y", size, y, "tile", flops, moved, PRODUCTS,
        (("cuBLAS", lambda: x @ w.T), ("cuBLAS, addmm_", lambda: (x @ w.T).addmm_(h[:, :r], up))),
    )  # fmt: skip
    dx = partial(product, dy, w.T, g, a, target=target)
    yield Pass(
        "product dx", size, dx, "tile", flops, moved, PRODUCTS,
        (("cuBLAS", lambda: dy @ w), ("cuBLAS, addmm_", lambda: (dy @ w).addmm_(g[:, :r], down))),
    )  # fmt: skip
    masked = partial(add_masked, g=g, a=a, dropout=dropout, target=target)
    yield Pass(
        "product dx, dropout", size, partial(dx, dropout=dropout), "tile", flops, moved, PRODUCTS,
        (("cuBLAS, add masked", lambda: masked(dy @ w)),),
    )  # fmt: skip


def _eight_bits(size: Size, target: Target, made: tuple[Tensor, ...]) -> Iterator[Pass]:
    m, k, n, r = size.m, size.k, size.n, size.r
    x, dy, w, a, b, h, g = made
    weight = Int8Weight(*int8_quantize(w))
    codes, scales = weight
    rows, dy_rows = quantize_rows(x, target=target), quantize_rows(dy, scales, target=target)
    transposed = transpose(codes, target=target).clone()
    dropout = dropout_of(torch.tensor([12345]), 0.05)
    flops, moved = m * n * k, 2 * m * n + m * k + n * k  # int8 units are twice as fast
    int_mm = torch._int_mm

    y = partial(int8_product, rows, codes, h, b.T, dtype=x.dtype, target=target, scales=scales)
    yield Pass(
        "int8 product y", size, y, "tile", flops, moved, INT8_PRODUCTS,
        (("_int_mm", lambda: int_mm(rows.codes, codes.T)),),
    )  # fmt: skip
    dx = partial(int8_product, dy_rows, transposed, g, a, dtype=x.dtype, target=target)
    moved = 2 * m * k + m * n + n * k
    yield Pass(
        "int8 product dx", size, dx, "tile", flops, moved, INT8_PRODUCTS,
        (("_int_mm", lambda: int_mm(dy_rows.codes, transposed.T)),),
    )  # fmt: skip
    dropped = partial(dx, dropout=dropout)
    yield Pass("int8 product dx, dropout", size, dropped, "tile", flops, moved, INT8_PRODUCTS)
    quantize = partial(quantize_rows, x, target=target)
    yield Pass("quantize x", size, quantize, "row", 0, 3 * m * k, ROWS)
    quantize = partial(quantize_rows, dy, scales, target=target)
    yield Pass("quantize dy", size, quantize, "row", 0, 3 * m * n, ROWS)
    for drop, words in ((NO_DROPOUT, ""), (dropout, ", dropout")):
        down = partial(
            down_project, rows, a, factor=2.0, dtype=x.dtype, dropout=drop, target=target
        )
        yield Pass("down codes" + words, size, down, "strip", 2 * m * k * r, m * k, DOWN)
        across = partial(cross, g, rows, a, dropout=drop, target=target)
        yield Pass("cross g codes" + words, size, across, "strip", 2 * m * k * r, m * k, CROSS)
    by_columns = partial(transpose, codes, target=target)
    yield Pass("transpose", size, by_columns, "strip", 0, 2 * n * k, TRANSPOSE)
    whole = partial(dequantize, weight, x.dtype, target=target)
    yield Pass("dequantize", size, whole, "strip", 0, 3 * n * k, DEQUANTIZE)
