"""The compile gate's cases: every kernel with every entry of the tables, per target."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial

import torch

from benchmarks.compile_gate.int8_cases import int8_cases
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
from peftlab_kernels.triton.configurations import (
    Configurations,
    Strip,
    Target,
    Tile,
    configurations,
    padded_rank,
)
from peftlab_kernels.triton.lora_backward import cross, dy_pass
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.masked_addition import add_masked
from peftlab_kernels.triton.partials import Sum, add_up
from peftlab_kernels.triton.philox import NO_DROPOUT
from peftlab_kernels.triton.product import product

GATED = {"sm_80": 108, "sm_86": 82, "sm_90": 132, "sm_120": 170}
"""Targets, and the processors of a large GPU of each kind."""


def all_cases() -> Iterator[Case]:
    """The cases of every target, `gfx942` last and without gating."""
    for name, processors in GATED.items():
        target = Target(name, processors)
        for dtype in (torch.bfloat16, torch.float16, torch.float32):
            yield from _of_dtype(target, dtype)
        yield from int8_cases(target)
    yield from _amd()


def _of_dtype(target: Target, dtype: torch.dtype) -> Iterator[Case]:
    table = configurations(target, dtype)
    for number, tile in enumerate(dict.fromkeys(table.product + table.product_transposed)):
        if dtype is torch.float16 and number:
            continue
        yield from _products(target, dtype, tile, whole=dtype is torch.bfloat16)
    for tile in table.product_dropout[: 1 if dtype is torch.float16 else None]:
        ranks = (16, 64, 256) if dtype is torch.bfloat16 else (16,)
        yield from (_product(target, dtype, tile, r, backward=True, dropout=True) for r in ranks)
    if dtype is not torch.float16:
        yield from _ragged(target, dtype, table.product_ragged)
    yield from _side_passes(target, dtype, table, (M, IN))
    if dtype is torch.bfloat16:
        yield from _side_passes(target, dtype, table, RAGGED)


def _products(target: Target, dtype: torch.dtype, tile: Tile, whole: bool) -> Iterator[Case]:
    for backward in (False, True):
        for rank in (0, 16, 64, 256) if whole else (16,):
            yield _product(target, dtype, tile, rank, backward=backward)
        if whole:
            yield _product(target, dtype, tile, 16, backward=backward, adapter=dtype)
        if whole and not tile.tma:
            yield _product(target, dtype, tile, 16, backward=backward, shape=TAIL)


def _ragged(target: Target, dtype: torch.dtype, tile: Tile) -> Iterator[Case]:
    for rank in (16, 256):
        for backward, dropout in ((False, False), (True, False), (True, True)):
            yield _product(
                target, dtype, tile, rank, backward=backward, dropout=dropout, shape=RAGGED
            )


def _product(
    target: Target,
    dtype: torch.dtype,
    tile: Tile,
    rank: int,
    *,
    backward: bool,
    dropout: bool = False,
    adapter: torch.dtype = torch.float32,
    shape: tuple[int, int] = (IN, OUT),
) -> Case:
    inside, outside = shape
    w = meta(outside, inside, dtype=dtype)
    x = meta(M, outside if backward else inside, dtype=dtype)
    low = up = bias = None
    if rank:
        low = meta(M, padded_rank(rank), dtype=dtype)
        up = meta(rank, inside, dtype=adapter)
        up = up if backward else meta(outside, rank, dtype=adapter).T
    if not backward:
        bias = meta(outside, dtype=dtype)
    words = ["backward" if backward else "forward", f"r={rank}"]
    words += ["dropout"] * dropout + ["tail"] * (shape == TAIL) + ["ragged"] * (shape == RAGGED)
    words += [f"{SHORT[adapter]} adapter"] * (rank > 0 and dtype is not adapter)
    return Case(
        target.name, "product", ", ".join(words), spell(tile), SHORT[dtype],
        lambda: product(
            x, w.T if backward else w, low, up, target=target, bias=bias, tile=tile,
            dropout=DROPOUT if dropout else NO_DROPOUT,
        ),
    )  # fmt: skip


def _side_passes(
    target: Target, dtype: torch.dtype, table: Configurations, shape: tuple[int, int]
) -> Iterator[Case]:
    m, k = shape
    x = meta(m, k, dtype=dtype)
    of = {"target": target}
    ragged = ", ragged" if shape == RAGGED else ""

    def case(operator: str, variant: str, strip: Strip, call: Callable[[], object]) -> Case:
        return Case(target.name, operator, variant + ragged, spell(strip), SHORT[dtype], call)

    for rank, strip in table.down.items():
        a, at = meta(rank, k), meta(k, rank).T
        yield case(
            "down_project", f"r={rank}", strip, partial(down_project, x, a, factor=1.0, **of)
        )
        yield case(
            "down_project", f"r={rank}, B^T", strip, partial(down_project, x, at, factor=1.0, **of)
        )
    for rank, strip in table.down_dropout.items():
        yield case(
            "down_project", f"r={rank}, dropout", strip,
            partial(down_project, x, meta(rank, k), factor=1.0, dropout=DROPOUT, **of),
        )  # fmt: skip
    for rank, strip in {} if ragged else table.dy_pass.items():
        b, h = meta(k, rank), meta(m, rank, dtype=dtype)
        yield case("dy_pass", f"r={rank}", strip, partial(dy_pass, x, b, h, factor=1.0, **of))
    for rank, strip in table.cross.items():
        a, b, low = meta(rank, k), meta(k, rank), meta(m, rank, dtype=dtype)
        yield case("cross", f"r={rank}", strip, partial(cross, low, x, a, **of))
        yield case(
            "cross",
            f"r={rank}, transposed",
            strip,
            partial(cross, low, x, b, transposed=True, **of),
        )
    for rank, strip in table.cross_dropout.items():
        a, low = meta(rank, k), meta(m, rank, dtype=dtype)
        yield case(
            "cross", f"r={rank}, dropout", strip, partial(cross, low, x, a, dropout=DROPOUT, **of)
        )
    for rank in (16, 64, 256):
        a, g = meta(rank, k), meta(m, rank, dtype=dtype)
        yield case(
            "add_masked",
            f"r={rank}",
            table.add_masked,
            partial(add_masked, x, g, a, dropout=DROPOUT, **of),
        )
    if not ragged:
        sums = (
            Sum(meta(4, m, 16), meta(m, 16, dtype=dtype)),
            Sum(meta(3, OUT, 16), meta(OUT, 16)),
        )
        for what, added in (("sum of parts", sums[:1]), ("two sums of parts", sums)):
            yield Case(target.name, what, "", "1024 w4", SHORT[dtype], partial(add_up, *added))


def _amd() -> Iterator[Case]:
    """An A100's first entries on AMD, only to check that they compile."""
    bf16 = torch.bfloat16
    target = Target("sm_80", 304)
    table = configurations(target, bf16)
    cases = [
        _product(target, bf16, table.product[0], 16, backward=backward)
        for backward in (False, True)
    ]
    cases.append(_product(target, bf16, table.product_dropout[0], 16, backward=True, dropout=True))
    for side in _side_passes(target, bf16, table, (M, IN)):
        if not side.variant or side.variant.startswith("r=16"):
            cases.append(side)
    for case in cases:
        yield replace(case, target="gfx942", gated=False)
