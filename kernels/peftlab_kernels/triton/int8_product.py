"""The product of two int8 matrices on int8 tensor cores, with the epilogue before the store.

Forward and the backward of x are one operator, Y = steps (X W) scales / 127 + bias + D * (Low Up):

    y  = x  Q^T scales / 127 + bias + h B^T      X = codes of x, Low = h, Up = B^T, no D
    dx = dy Q                       + D * (g A)  X = codes of dy, scales folded in, Low = g, Up = A

Legend: X [M, Q] int8 and its steps [M], W [P, Q] int8, rows contiguous in both, as the units want
them; scales [P]; Low [M, RANK], Up [R, P], Y [M, P]; RANK is R padded with zeros to a power of two.

The sums are exact int32. The low-rank part meets them in the epilogue, when the loop's shared
memory is free; with D it has an accumulator of its own there, to be masked.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows
from peftlab_kernels.triton.configurations import (
    Target,
    Tile,
    choose_tile,
    configurations,
    padded_rank,
    regular_strides,
)
from peftlab_kernels.triton.dot import interpreting, precision_of
from peftlab_kernels.triton.int8_configurations import int8_configurations
from peftlab_kernels.triton.launching import Launch, ceil_div, descriptor, layout, planned
from peftlab_kernels.triton.philox import NO_DROPOUT, Dropout, keep_tile
from peftlab_kernels.triton.product import (
    GROUP,
    add_low_rank,
    store_tile,
    tile_origin,
)


@triton.jit
def finish_tile(
    sums, Steps, Scales, Bias, Low, Up, Y, m0, p0, M, P, R,
    stride_lm, stride_ur, stride_up, stride_ym, seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, BM: tl.constexpr, BN: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """From the int32 sums of a tile to Y."""
    rows, columns = tl.arange(0, BM), p0 + tl.arange(0, BN)
    steps = tl.load(Steps + m0 + rows, mask=rows < M - m0, other=0.0)
    acc = sums.to(tl.float32) * steps[:, None]
    if HAS_SCALES:
        scales = tl.load(Scales + columns, mask=columns < P, other=0.0)
        acc *= (scales * (1 / 127))[None, :]
    if HAS_BIAS:
        acc += tl.load(Bias + columns, mask=columns < P, other=0.0).to(tl.float32)[None, :]
    if RANK > 0 and DROPOUT:
        low = add_low_rank(
            tl.zeros([BM, BN], tl.float32), Low, Up, m0, p0, M, P, R,
            stride_lm, stride_ur, stride_up, RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
        keep = keep_tile(seed_low, seed_high, threshold, m0, p0, BM, BN)
        acc += tl.where(keep, low, 0.0)
    elif RANK > 0:
        acc = add_low_rank(
            acc, Low, Up, m0, p0, M, P, R, stride_lm, stride_ur, stride_up,
            RANK, CHUNK, BM, BN, PRECISION, UPCAST,
        )  # fmt: skip
    store_tile(acc, Y, m0, p0, M, P, stride_ym, BM, BN, UPCAST)


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold"])
def int8_product_kernel(
    X, Steps, W, Scales, Bias, Low, Up, Y, M, P, Q, R,
    stride_xm, stride_wp, stride_lm, stride_ur, stride_up, stride_ym,
    seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr, EVEN_Q: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Operands through pointers: rows that begin anywhere."""
    m0, p0 = tile_origin(M, P, BM, BN, GROUP)
    # Offsets inside a tile fit 32 bits, where a tile begins may not. Rows past the end of either
    # operand repeat its last one.
    rows = tl.minimum(tl.arange(0, BM), M - 1 - m0)
    columns = tl.minimum(tl.arange(0, BN), P - 1 - p0)
    inner = tl.arange(0, BK)
    x_at = X + m0.to(tl.int64) * stride_xm + rows[:, None] * stride_xm + inner[None, :]
    w_at = W + p0.to(tl.int64) * stride_wp + columns[None, :] * stride_wp + inner[:, None]
    sums = tl.zeros([BM, BN], tl.int32)
    for q in range(0, Q, BK):
        if EVEN_Q:
            x, w = tl.load(x_at), tl.load(w_at)
        else:
            x = tl.load(x_at, mask=(inner < Q - q)[None, :], other=0)
            w = tl.load(w_at, mask=(inner < Q - q)[:, None], other=0)
        sums = tl.dot(x, w, sums, out_dtype=tl.int32)
        x_at += BK
        w_at += BK
    finish_tile(
        sums, Steps, Scales, Bias, Low, Up, Y, m0, p0, M, P, R,
        stride_lm, stride_ur, stride_up, stride_ym, seed_low, seed_high, threshold,
        RANK, CHUNK, DROPOUT, HAS_SCALES, HAS_BIAS, BM, BN, PRECISION, UPCAST,
    )  # fmt: skip


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold"])
def int8_product_tma_kernel(
    X, Steps, W, Scales, Bias, Low, Up, Y, M, P, Q, R,
    stride_lm, stride_ur, stride_up, stride_ym,
    seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, DROPOUT: tl.constexpr,
    HAS_SCALES: tl.constexpr, HAS_BIAS: tl.constexpr,
    BM: tl.constexpr, BN: tl.constexpr, BK: tl.constexpr, GROUP: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Hopper: X and W are tensor descriptors, which read zeros past the ends."""
    m0, p0 = tile_origin(M, P, BM, BN, GROUP)
    sums = tl.zeros([BM, BN], tl.int32)
    for q in range(0, Q, BK):
        sums = tl.dot(X.load([m0, q]), W.load([p0, q]).T, sums, out_dtype=tl.int32)
    finish_tile(
        sums, Steps, Scales, Bias, Low, Up, Y, m0, p0, M, P, R,
        stride_lm, stride_ur, stride_up, stride_ym, seed_low, seed_high, threshold,
        RANK, CHUNK, DROPOUT, HAS_SCALES, HAS_BIAS, BM, BN, PRECISION, UPCAST,
    )  # fmt: skip


def int8_product(
    x: Int8Rows,
    weight: Tensor,
    low: Tensor | None = None,
    up: Tensor | None = None,
    *,
    dtype: torch.dtype,
    target: Target,
    scales: Tensor | None = None,
    bias: Tensor | None = None,
    dropout: Dropout = NO_DROPOUT,
    tile: Tile | None = None,
) -> Tensor:
    """`steps (codes W^T) scales / 127 + bias + D * (low up)` [M, P] in `dtype`.

    codes [M, Q] and weight [P, Q] int8 with rows contiguous, scales [P] fp32; low [M, padded R] in
    `dtype`, up [R, P] of any strides and dtype; bias [P].
    """
    codes, steps = x
    y = torch.empty(codes.shape[0], weight.shape[0], dtype=dtype, device=codes.device)
    added: tuple[Any, ...] | None = None
    if low is not None and up is not None:
        added = (up.shape[0], low.stride(0), *up.stride(), up.dtype)
    plan = _plan(
        target, dtype, precision_of(dtype), codes.shape, weight.shape[0],
        codes.stride(), weight.stride(), not (codes.data_ptr() | weight.data_ptr()) % 16, added,
        scales is not None, None if bias is None else bias.dtype, dropout.threshold > 0, tile,
    )  # fmt: skip
    beside = scales, bias, low, up, y
    if plan.laid_out is None:
        plan.launch((codes, steps, weight, *beside), *dropout[:3])
        return y
    x_layout, w_layout = plan.laid_out
    operands = descriptor(codes, x_layout), steps, descriptor(weight, w_layout), *beside
    plan.launch(operands, *dropout[:3])
    return y


class _Plan(NamedTuple):
    launch: Launch
    laid_out: tuple[dict[str, Any], dict[str, Any]] | None
    """The descriptor fields of both codes; None where the kernel takes pointers."""


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
    scaled: bool,
    bias_dtype: torch.dtype | None,
    masked: bool,
    tile: Tile | None,
) -> _Plan:
    """`added`: R, the strides and the dtype of Up of the low-rank part."""
    m, q = shape
    table = int8_configurations(target, dtype)
    rank, *low_strides = added[:4] if added else (0, 0, 0, 0)
    if tile is None:
        tiles = table.products(rank, dropout=masked)
        # Loading a byte takes as large a part of the time as loading a bf16 does in bf16 products.
        l2_cost = configurations(target, torch.bfloat16).l2_cost
        tile = choose_tile(tiles, target, l2_cost, m, p)
        if not (aligned and regular_strides(x_strides) and regular_strides(w_strides)):
            tile = table.product_ragged
    padded = padded_rank(rank) if rank else 0
    constants = {
        "RANK": padded, "CHUNK": min(padded, table.rank_chunk), "DROPOUT": masked,
        "HAS_SCALES": scaled, "HAS_BIAS": bias_dtype is not None,
        "BM": tile.m, "BN": tile.n, "BK": tile.k, "GROUP": GROUP,
        "PRECISION": precision, "UPCAST": interpreting(),
        "num_warps": tile.warps, "num_stages": tile.stages,
    }  # fmt: skip
    grid = (ceil_div(m, tile.m) * ceil_div(p, tile.n),)
    if not tile.tma:
        launch = Launch(
            int8_product_kernel, grid,
            (m, p, q, rank, x_strides[0], w_strides[0], *low_strides, p),
            EVEN_Q=q % tile.k == 0, **constants,
        )  # fmt: skip
        return _Plan(launch, None)
    launch = Launch(int8_product_tma_kernel, grid, (m, p, q, rank, *low_strides, p), **constants)
    x_layout = layout((m, q), x_strides, (tile.m, tile.k))
    return _Plan(launch, (x_layout, layout((p, q), w_strides, (tile.n, tile.k))))
