"""The compile gate's cases of the kernels over 8-bit operands, per target and width of y."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Tensor

from benchmarks.compile_gate.parts import (
    DROPOUT,
    IN,
    OUT,
    RAGGED,
    SHORT,
    TAIL,
    Case,
    M,
    meta,
    spell,
)
from peftlab_kernels.int8_format import Int8Rows, Int8Weight
from peftlab_kernels.triton.configurations import Strip, Target, Tile, configurations, padded_rank
from peftlab_kernels.triton.int8_configurations import int8_configurations
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import dequantize, transpose
from peftlab_kernels.triton.lora_backward import cross
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.philox import NO_DROPOUT
from peftlab_kernels.triton.quantize import quantize_rows

PRODUCT = "int8 product"
"""The operator that must use integer tensor cores, without byte shuffles in its loop."""

WITHOUT_PRODUCTS = frozenset(
    {"quantize", "transpose", "dequantize", "sum of parts", "two sums of parts"}
)
"""Operators that multiply no matrices."""


def int8_cases(target: Target) -> Iterator[Case]:
    """The cases of one target."""
    for dtype in (torch.bfloat16, torch.float32):
        table = int8_configurations(target, dtype)
        whole = dtype is torch.bfloat16
        ranks = (0, 16, 64, 256) if whole else (16,)
        for rank, backward in ((r, b) for r in ranks for b in (False, True)):
            for tile in table.products(rank, dropout=False):
                yield _product(target, dtype, tile, rank, backward=backward)
                if whole and rank == 16 and not tile.tma:
                    yield _product(target, dtype, tile, rank, backward=backward, shape=TAIL)
        for tile in table.product_dropout:
            for rank in (16, 64, 256) if whole else (16,):
                yield _product(target, dtype, tile, rank, backward=True, dropout=True)
        for backward, dropout in ((False, False), (True, False), (True, True)):
            yield _product(
                target, dtype, table.product_ragged, 16, backward=backward, dropout=dropout,
                shape=RAGGED,
            )  # fmt: skip
        yield from _passes(target, dtype)


def _product(
    target: Target,
    dtype: torch.dtype,
    tile: Tile,
    rank: int,
    *,
    backward: bool,
    dropout: bool = False,
    shape: tuple[int, int] = (IN, OUT),
) -> Case:
    inside, outside = shape if not backward else shape[::-1]
    weight = meta(outside, inside, dtype=torch.int8)
    low = up = bias = scales = None
    if rank:
        low = meta(M, padded_rank(rank), dtype=dtype)
        up = meta(rank, outside) if backward else meta(outside, rank).T
    if not backward:
        bias, scales = meta(outside, dtype=dtype), meta(outside)
    words = ["backward" if backward else "forward", f"r={rank}"]
    words += ["dropout"] * dropout + ["tail"] * (shape == TAIL) + ["ragged"] * (shape == RAGGED)
    return Case(
        target.name, PRODUCT, ", ".join(words), spell(tile), SHORT[dtype],
        partial(
            int8_product, _rows(inside), weight, low, up, dtype=dtype, target=target,
            scales=scales, bias=bias, dropout=DROPOUT if dropout else NO_DROPOUT, tile=tile,
        ),
    )  # fmt: skip


def _passes(target: Target, dtype: torch.dtype) -> Iterator[Case]:
    table = int8_configurations(target, dtype)

    def case(operator: str, variant: str, block: Strip | None, call: Callable[[], object]) -> Case:
        configuration = "" if block is None else spell(block)
        return Case(target.name, operator, variant, configuration, SHORT[dtype], call)

    for row in table.rows:
        for scales in (None, meta(row.columns)):
            yield case(
                "quantize", f"{row.columns} columns{', scaled' * (scales is not None)}", None,
                partial(quantize_rows, meta(M, row.columns, dtype=dtype), scales, target=target),
            )  # fmt: skip
    yield case(
        "quantize", "in parts", None,
        partial(quantize_rows, meta(M, 3 * table.rows[-1].columns, dtype=dtype), target=target),
    )  # fmt: skip
    codes = meta(OUT, IN, dtype=torch.int8)
    yield case("transpose", "", table.transpose, partial(transpose, codes, target=target))
    yield case(
        "dequantize", "", table.dequantize,
        partial(dequantize, Int8Weight(codes, meta(OUT)), dtype, target=target),
    )  # fmt: skip
    side = configurations(target, dtype)
    of = {"target": target}
    for rank, strip in side.down.items():
        a = meta(rank, IN)
        down = partial(down_project, _rows(IN), a, factor=1.0, dtype=dtype, **of)
        yield case("down_project", f"r={rank}, 8 bits", strip, down)
    for rank, strip in side.down_dropout.items():
        a = meta(rank, IN)
        down = partial(down_project, _rows(IN), a, factor=1.0, dtype=dtype, dropout=DROPOUT, **of)
        yield case("down_project", f"r={rank}, 8 bits, dropout", strip, down)
    for dropout, strips in ((NO_DROPOUT, side.cross), (DROPOUT, side.cross_dropout)):
        for rank, strip in strips.items():
            low: Tensor = meta(M, rank, dtype=dtype)
            crossed = partial(cross, low, _rows(IN), meta(rank, IN), dropout=dropout, **of)
            words = f"r={rank}, 8 bits{', dropout' * (dropout is DROPOUT)}"
            yield case("cross", words, strip, crossed)


def _rows(columns: int) -> Int8Rows:
    return Int8Rows(meta(M, columns, dtype=torch.int8), meta(M))
