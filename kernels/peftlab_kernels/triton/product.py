"""The product with the frozen weight, the low-rank part in the same accumulator: one pass over y.

Forward and the backward of x are one operator, `Y = X W + bias + D * (Low Up)`:

    y  = x  W^T + bias + h B^T        X = x,  Low = h, Up = B^T, no D (h carries it)
    dx = dy W          + D * (g A)    X = dy, Low = g, Up = A

Legend: X [M, Q], W [P, Q] (either dimension may be the contiguous one, which covers both layouts in
both directions), Low [M, RANK], Up [R, P], Y [M, P]; RANK is R padded with zeros to a power of two.

Without D the low-rank part comes after the loop, when the loop's shared memory is free; with D
before it, since a masked addend must be finished before it meets the accumulator, and a second
accumulator does not fit in registers.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.triton.configurations import (
    Target,
    Tile,
    choose_tile,
    configurations,
    padded_rank,
    regular_strides,
)
from peftlab_kernels.triton.dot import cast, dot, interpreting, precision_of
from peftlab_kernels.triton.launching import Launch, ceil_div, descriptor, layout, planned
from peftlab_kernels.triton.philox import NO_DROPOUT, Dropout, keep_tile


@triton.jit
def tile_origin(M, P, BM: tl.constexpr, BN: tl.constexpr, GROUP: tl.constexpr):
    """This program's first row and column: GROUP rows of tiles share their columns of W in L2."""
    tile = tl.program_id(0)
    rows, columns = tl.cdiv(M, BM), tl.cdiv(P, BN)
    group = tile // (GROUP * columns)
    first = group * GROUP
    height = tl.minimum(rows - first, GROUP)
    within = tile % (GROUP * columns)
    return (first + within % height) * BM, (within // height) * BN


@triton.jit
def add_low_rank(
    acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
    RANK: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`acc + Low Up`, CHUNK ranks at a time.

    In a loop at run time: unrolled, the loads of all chunks move up and spill.
    """
    rows = tl.minimum(tl.arange(0, BM), M - 1 - m0)
    columns = p0 + tl.arange(0, BN)
    ranks = tl.arange(0, CHUNK)
    low_at = Low + m0.to(tl.int64) * stride_lm + rows[:, None] * stride_lm + ranks[None, :]
    up_at = Up + ranks[:, None] * stride_ur + columns[None, :] * stride_up
    for rank in tl.range(0, RANK, CHUNK, num_stages=1):
        low = tl.load(low_at + rank)
        inside = (rank + ranks < R)[:, None] & (columns < P)[None, :]
        up = tl.load(up_at + rank * stride_ur, mask=inside, other=0.0)
        acc = dot(low, cast(up, low.dtype, UPCAST), acc, PRECISION, UPCAST)
    return acc


@triton.jit
def first_tile(Bias, p0, P, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr):
    """The accumulator to begin with: the bias, which then needs no registers after the loop."""
    acc = tl.zeros([BM, BN], tl.float32)
    if HAS_BIAS:
        columns = p0 + tl.arange(0, BN)
        acc += tl.load(Bias + columns, mask=columns < P, other=0.0).to(tl.float32)[None, :]
    return acc


@triton.jit
def store_tile(
    acc, Y, m0, p0, M, P, stride_ym,
    BM: tl.constexpr, BN: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Write the accumulator to Y [M, P] in Y's dtype."""
    rows, columns = tl.arange(0, BM), p0 + tl.arange(0, BN)
    at = Y + m0.to(tl.int64) * stride_ym + rows[:, None] * stride_ym + columns[None, :]
    inside = (m0 + rows < M)[:, None] & (columns < P)[None, :]
    tl.store(at, cast(acc, Y.dtype.element_ty, UPCAST), mask=inside)


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold"])
def product_kernel(
    X, W, Bias, Low, Up, Y, M, P, Q, R,
    stride_xm, stride_wp, stride_wq, stride_lm, stride_ur, stride_up, stride_ym,
    seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr, HAS_BIAS: tl.constexpr,
    EVEN_P: tl.constexpr, EVEN_Q: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Operands through pointers: any strides, any alignment."""
    m0, p0 = tile_origin(M, P, BM, BN, GROUP)
    acc = first_tile(Bias, p0, P, HAS_BIAS, BM, BN)
    if RANK > 0 and DROPOUT:
        acc = add_low_rank(
            acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
            RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
        keep = keep_tile(seed_low, seed_high, threshold, m0, p0, BM, BN)
        acc = tl.where(keep, acc, 0.0)

    # Offsets inside a tile fit 32 bits, where a tile begins may not. Rows past the end repeat the
    # last one; columns past the end, maybe contiguous ones, are masked.
    rows = tl.minimum(tl.arange(0, BM), M - 1 - m0)
    columns = tl.arange(0, BN)
    inner = tl.arange(0, BK)
    x_at = X + m0.to(tl.int64) * stride_xm + rows[:, None] * stride_xm + inner[None, :]
    w_at = W + p0.to(tl.int64) * stride_wp
    w_at = w_at + columns[None, :] * stride_wp + inner[:, None] * stride_wq
    for q in range(0, Q, BK):
        x = tl.load(x_at) if EVEN_Q else tl.load(x_at, mask=(inner < Q - q)[None, :], other=0.0)
        if EVEN_Q and EVEN_P:
            w = tl.load(w_at)
        elif EVEN_Q:
            w = tl.load(w_at, mask=(columns < P - p0)[None, :], other=0.0)
        else:
            inside = (columns < P - p0)[None, :] & (inner < Q - q)[:, None]
            w = tl.load(w_at, mask=inside, other=0.0)
        acc = dot(x, w, acc, PRECISION, UPCAST)
        x_at += BK
        w_at += BK * stride_wq

    if RANK > 0 and not DROPOUT:
        acc = add_low_rank(
            acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
            RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
    store_tile(acc, Y, m0, p0, M, P, stride_ym, BM, BN, UPCAST)


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold"])
def product_tma_kernel(
    X, W, Bias, Low, Up, Y, M, P, Q, R,
    stride_lm, stride_ur, stride_up, stride_ym,
    seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr, HAS_BIAS: tl.constexpr,
    W_ROWS_ARE_Q: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Hopper: X and W are tensor descriptors, which read zeros past the ends."""
    m0, p0 = tile_origin(M, P, BM, BN, GROUP)
    acc = first_tile(Bias, p0, P, HAS_BIAS, BM, BN)
    if RANK > 0 and DROPOUT:
        acc = add_low_rank(
            acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
            RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
        keep = keep_tile(seed_low, seed_high, threshold, m0, p0, BM, BN)
        acc = tl.where(keep, acc, 0.0)

    for q in range(0, Q, BK):
        x = X.load([m0, q])
        w = W.load([q, p0]) if W_ROWS_ARE_Q else W.load([p0, q]).T
        acc = dot(x, w, acc, PRECISION, UPCAST)

    if RANK > 0 and not DROPOUT:
        acc = add_low_rank(
            acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
            RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
    store_tile(acc, Y, m0, p0, M, P, stride_ym, BM, BN, UPCAST)


GROUP = 8
"""Rows of tiles that share their columns of the weight in L2."""


def product(
    x: Tensor,
    weight: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    *,
    target: Target,
    bias: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    tile: Tile | None = None,
) -> Tensor:
    """`x W + bias + D * (low up)` [M, P] in x's dtype.

    x [M, Q] with rows contiguous; weight [P, Q] with either dimension contiguous, of x's
    dtype; low [M, padded R] in x's dtype, up [R, P] of any strides and dtype; bias [P].
    """
    y = torch.empty(x.shape[0], weight.shape[0], dtype=x.dtype, device=x.device)
    added: tuple[Any, ...] | None = None
    if low is not None and up is not None:
        added = (up.shape[0], low.stride(0), *up.stride(), up.dtype)
    plan = _plan(
        target, x.dtype, precision_of(x.dtype), x.shape, weight.shape[0],
        x.stride(), weight.stride(), not (x.data_ptr() | weight.data_ptr()) % 16, added,
        None if bias is None else bias.dtype, dropout.threshold > 0, tile,
    )  # fmt: skip
    if plan.laid_out is None:
        plan.launch((x, weight, bias, low, up, y), *dropout[:3])
        return y
    x_layout, w_layout = plan.laid_out
    w = weight.T if weight.stride(1) != 1 else weight
    operands = descriptor(x, x_layout), descriptor(w, w_layout), bias, low, up, y
    plan.launch(operands, *dropout[:3])
    return y


class _Plan(NamedTuple):
    launch: Launch
    laid_out: tuple[dict[str, Any], dict[str, Any]] | None
    """The descriptor fields of x and the weight; None where the kernel takes pointers."""


@planned
def _plan(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    shape: Sequence[int],
    p: int,
    x_strides: tuple[int, ...],
    w_strides: tuple[int, ...],
    aligned: bool,
    added: tuple[Any, ...] | None,
    bias_dtype: torch.dtype | None,
    masked: bool,
    tile: Tile | None,
) -> _Plan:
    """`added`: R, the strides and the dtype of Up of the low-rank part."""
    m, q = shape
    table = configurations(target, dtype)
    if tile is None:
        tiles = table.product if w_strides[1] == 1 else table.product_transposed
        tiles = table.product_dropout if masked else tiles
        tile = choose_tile(tiles, target, table.l2_cost, m, p)
        # A descriptor requires multiples of 16 bytes, Triton's loads multiples of 16 elements.
        unit = 16 // dtype.itemsize if tile.tma else 16
        if not (aligned and all(regular_strides(s, unit) for s in (x_strides, w_strides))):
            tile = table.product_ragged
    rank, *low_strides = added[:4] if added else (0, 0, 0, 0)
    padded = padded_rank(rank) if rank else 0
    constants = {
        "RANK": padded, "CHUNK": min(padded, table.rank_chunk),
        "DROPOUT": masked, "HAS_BIAS": bias_dtype is not None,
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": GROUP,
        "PRECISION": precision, "UPCAST": interpreting(),
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    grid = (ceil_div(m, tile.m) * ceil_div(p, tile.n),)
    if not tile.tma:
        launch = Launch(
            product_kernel, grid, (m, p, q, rank, x_strides[0], *w_strides, *low_strides, p),
            EVEN_P=p % tile.n == 0, EVEN_Q=q % tile.k == 0, **constants,
        )  # fmt: skip
        return _Plan(launch, None)
    w_transposed = w_strides[1] != 1
    launch = Launch(
        product_tma_kernel, grid, (m, p, q, rank, *low_strides, p),
        W_ROWS_ARE_Q=w_transposed, **constants,
    )  # fmt: skip
    w_layout = (
        layout((q, p), w_strides[::-1], (tile.k, tile.n)) if w_transposed
        else layout((p, q), w_strides, (tile.n, tile.k))
    )  # fmt: skip
    return _Plan(launch, (layout((m, q), x_strides, (tile.m, tile.k)), w_layout))
