"""The side passes of backward: `g` and `dB` from one reading of dy, `dA` from one of x.

    g = s dy B      dB = dy^T h      dA = g^T (D * x)

One reading of dy gives a part of g per BN columns, which costs 4 R / BN of what a second reading
would; where that is no gain, `dB = cross(h, dy)` and `g` is the down-projection of dy.

h and g carry the factors s and 1 / (1 - p), so D is only the mask here. Where a sum runs over
programs, each writes its part in fp32 and `partials.py` adds them in a fixed order: atomics would
round in another order each run.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows
from peftlab_kernels.protocol import Needs
from peftlab_kernels.triton.configurations import (
    Strip,
    Target,
    configurations,
    padded_rank,
    ranks_at_a_time,
    regular,
)
from peftlab_kernels.triton.dot import cast, dot, interpreting, precision_of, widen
from peftlab_kernels.triton.launching import Launch, ceil_div, planned
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.partials import Sum, add_up, split, sum_into
from peftlab_kernels.triton.philox import NO_DROPOUT, Dropout, keep_tile

CODES_RANGE = tl.constexpr(32.0)
"""Steps of a code that usual entries of x are: Low's entries times it keep their size in fp16."""


@triton.jit(do_not_specialize=["M", "steps"])
def dy_pass_kernel(
    DY, B, H, G, DB, M, N, R, stride_dm, stride_bn, stride_hm,
    stride_gs, stride_gm, stride_ds, stride_dn, factor, steps,
    BM: tl.constexpr, BN: tl.constexpr, RANK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Of BN columns and `steps` blocks of BM rows: G[chunk of columns, rows], DB[split of rows]."""
    chunk, split, r0 = tl.program_id(0), tl.program_id(1), tl.program_id(2) * RANK
    n0 = chunk * BN
    rows, columns, ranks = tl.arange(0, BM), tl.arange(0, BN), r0 + tl.arange(0, RANK)
    inside = (columns < N - n0)[:, None] & (ranks < R)[None, :]
    b_at = B + n0.to(tl.int64) * stride_bn + columns[:, None] * stride_bn + ranks[None, :]
    b = cast(tl.load(b_at, mask=inside, other=0.0), DY.dtype.element_ty, UPCAST)
    acc = tl.zeros([BN, RANK], tl.float32)
    m0 = split * steps * BM
    dy_at = DY + m0.to(tl.int64) * stride_dm + n0
    dy_at = dy_at + rows[:, None] * stride_dm + columns[None, :]
    h_at = H + m0.to(tl.int64) * stride_hm + rows[:, None] * stride_hm + ranks[None, :]
    g_at = G + chunk.to(tl.int64) * stride_gs + m0.to(tl.int64) * stride_gm
    g_at = g_at + rows[:, None] * stride_gm + ranks[None, :]
    for _ in range(0, steps):
        here = (rows < M - m0)[:, None]
        dy = tl.load(dy_at, mask=here & (columns < N - n0)[None, :], other=0.0)
        h = tl.load(h_at, mask=here, other=0.0)
        g = dot(dy, b, tl.zeros([BM, RANK], tl.float32), PRECISION, UPCAST)
        tl.store(g_at, cast(g * factor, G.dtype.element_ty, UPCAST), mask=here)
        acc = dot(tl.trans(dy), h, acc, PRECISION, UPCAST)
        m0 += BM
        dy_at += BM * stride_dm
        h_at += BM * stride_hm
        g_at += BM * stride_gm
    d_at = DB + split.to(tl.int64) * stride_ds + n0.to(tl.int64) * stride_dn
    d_at = d_at + columns[:, None] * stride_dn + ranks[None, :]
    tl.store(d_at, cast(acc, DB.dtype.element_ty, UPCAST), mask=inside)


@triton.jit(do_not_specialize=["M", "steps", "seed_low", "seed_high", "threshold"])
def cross_kernel(
    X, Steps, Low, Out, M, K, R, stride_xm, stride_lm, stride_os, stride_or, stride_ok,
    seed_low, seed_high, threshold, steps,
    CODES: tl.constexpr, DROPOUT: tl.constexpr, RANKS_FIRST: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Out[split of rows, ranks, columns] of BK columns and `steps` blocks of BM rows.

    RANKS_FIRST chooses the accumulator: [RANK, BK], or [BK, RANK] where wgmma wants 64 rows.
    CODES: X is in 8 bits, a row of it times its entry of Steps, which goes into Low's row.
    """
    k0, split, r0 = tl.program_id(0) * BK, tl.program_id(1), tl.program_id(2) * RANK
    rows, columns, ranks = tl.arange(0, BM), tl.arange(0, BK), r0 + tl.arange(0, RANK)
    m0 = split * steps * BM
    x_at = X + m0.to(tl.int64) * stride_xm + k0
    x_at = x_at + rows[:, None] * stride_xm + columns[None, :]
    low_at = Low + m0.to(tl.int64) * stride_lm + rows[:, None] * stride_lm + ranks[None, :]
    acc = tl.zeros([RANK, BK] if RANKS_FIRST else [BK, RANK], tl.float32)
    for _ in range(0, steps):
        here = (rows < M - m0)[:, None]
        x = tl.load(x_at, mask=here & (columns < K - k0)[None, :], other=0)
        low = tl.load(low_at, mask=here, other=0.0)
        x = widen(x, low.dtype, UPCAST)
        if CODES:
            step = tl.load(Steps + m0 + rows, mask=rows < M - m0, other=0.0) * CODES_RANGE
            low = cast(low.to(tl.float32) * step[:, None], low.dtype, UPCAST)
        if DROPOUT:
            keep = keep_tile(seed_low, seed_high, threshold, m0, k0, BM, BK)
            x = tl.where(keep, x, 0.0)
        if RANKS_FIRST:
            acc = dot(tl.trans(low), x, acc, PRECISION, UPCAST)
        else:
            acc = dot(tl.trans(x), low, acc, PRECISION, UPCAST)
        m0 += BM
        x_at += BM * stride_xm
        low_at += BM * stride_lm
    if CODES:
        acc *= 1 / CODES_RANGE
    if not RANKS_FIRST:
        acc = tl.trans(acc)
    out_at = Out + split.to(tl.int64) * stride_os + k0.to(tl.int64) * stride_ok
    out_at = out_at + ranks[:, None] * stride_or + columns[None, :] * stride_ok
    inside = (ranks < R)[:, None] & (columns < K - k0)[None, :]
    tl.store(out_at, cast(acc, Out.dtype.element_ty, UPCAST), mask=inside)


def dy_side(
    dy: Tensor,
    lora_b: Tensor,
    h: Tensor | None,
    factor: float,
    target: Target,
    needs: Needs,
    unfinished: list[Sum] | None = None,
) -> tuple[Tensor | None, Tensor | None]:
    """`g` and `dB`, from one reading of dy where that is the cheaper way; None if not needed.

    `unfinished`: as `cross` has it, for dB.
    """
    b = lora_b.contiguous()
    wants_g, wants_db = needs.x or needs.lora_a, needs.lora_b and h is not None
    once = regular(dy) and padded_rank(b.shape[1]) in configurations(target, dy.dtype).dy_pass
    if h is not None and wants_g and wants_db and once:
        return dy_pass(dy, b, h, factor=factor, target=target, unfinished=unfinished)
    g = down_project(dy, b.T, factor=factor, target=target) if wants_g else None
    if h is None or not wants_db:
        return g, None
    return g, cross(h, dy, b, transposed=True, target=target, unfinished=unfinished)


def dy_pass(
    dy: Tensor,
    b: Tensor,
    h: Tensor,
    *,
    factor: float,
    target: Target,
    strip: Strip | None = None,
    unfinished: list[Sum] | None = None,
) -> tuple[Tensor, Tensor]:
    """`g = factor dy B` [M, padded R] in dy's dtype, and `dB = dy^T h` [N, R] in B's.

    dy [M, N] with rows contiguous, B [N, R] contiguous, h [M, padded R]. `unfinished`: as `cross`
    has it, for dB.
    """
    plan = _dy_plan(
        target, dy.dtype, precision_of(dy.dtype), dy.shape, b.shape[1], dy.stride(0), b.dtype,
        strip,
    )  # fmt: skip
    g = torch.empty(plan.shape, dtype=dy.dtype, device=dy.device)
    db = torch.empty_like(b)
    g_sum, db_sum = sum_into(g, plan.chunks), sum_into(db, plan.splits)
    plan.launch((dy, b, h, g_sum.parts, db_sum.parts), factor, plan.steps)
    if unfinished is None:
        add_up(g_sum, db_sum)
    else:
        add_up(g_sum)
        unfinished.append(db_sum)
    return g, db


class _DyPlan(NamedTuple):
    launch: Launch
    shape: tuple[int, int]
    """Of g."""
    chunks: int
    splits: int
    steps: int


@planned
def _dy_plan(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    shape: Sequence[int],
    r: int,
    stride_dm: int,
    b_dtype: torch.dtype,
    strip: Strip | None,
) -> _DyPlan:
    m, n = shape
    strips = configurations(target, dtype).dy_pass
    padded = padded_rank(r)
    ranks = ranks_at_a_time(padded, strips)
    strip = strip or strips[ranks]
    chunks, rank_blocks = ceil_div(n, strip.columns), padded // ranks
    splits, steps = split(ceil_div(m, strip.rows), chunks * rank_blocks, target.processors, least=4)
    launch = Launch(
        dy_pass_kernel, (chunks, splits, rank_blocks),
        (m, n, r, stride_dm, r, padded, m * padded, padded, n * r, r),
        BM=strip.rows, BN=strip.columns, RANK=ranks, PRECISION=precision, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
    return _DyPlan(launch, (m, padded), chunks, splits, steps)


def cross(
    low: Tensor,
    x: Tensor | Int8Rows,
    like: Tensor,
    *,
    target: Target,
    dropout: Dropout = NO_DROPOUT,
    transposed: bool = False,
    strip: Strip | None = None,
    unfinished: list[Sum] | None = None,
) -> Tensor:
    """`low^T (D * x)` [R, K], contiguous as `like`; [K, R] if `transposed`.

    low [M, padded R], x [M, K] with rows contiguous, in low's dtype or in 8 bits. Where
    `unfinished` is given, the sum over programs is added to it and left to the caller's `add_up`.
    """
    x, row_steps = x if isinstance(x, Int8Rows) else (x, None)
    plan = _cross_plan(
        target, low.dtype, precision_of(low.dtype), x.shape, like.shape[1 if transposed else 0],
        x.stride(0), like.dtype, row_steps is not None, dropout.threshold > 0, transposed, strip,
    )  # fmt: skip
    out = torch.empty(like.shape, dtype=like.dtype, device=x.device)
    total = sum_into(out, plan.splits)
    plan.launch((x, row_steps, low, total.parts), *dropout[:3], plan.steps)
    if unfinished is None:
        add_up(total)
    else:
        unfinished.append(total)
    return out


class _CrossPlan(NamedTuple):
    launch: Launch
    splits: int
    steps: int


@planned
def _cross_plan(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    shape: Sequence[int],
    r: int,
    stride_xm: int,
    out_dtype: torch.dtype,
    codes: bool,
    masked: bool,
    transposed: bool,
    strip: Strip | None,
) -> _CrossPlan:
    m, k = shape
    table = configurations(target, dtype)
    strips = table.cross_dropout if masked else table.cross
    padded = padded_rank(r)
    ranks = ranks_at_a_time(padded, strips)
    strip = strip or strips[ranks]
    if codes:
        # Codes are widened in registers: a third stage of them would spill on sm_120.
        strip = replace(strip, stages=min(strip.stages, 2))
    columns, rank_blocks = ceil_div(k, strip.columns), padded // ranks
    splits, steps = split(
        ceil_div(m, strip.rows), columns * rank_blocks, target.processors, least=4
    )
    launch = Launch(
        cross_kernel, (columns, splits, rank_blocks),
        (m, k, r, stride_xm, padded, k * r, *((1, r) if transposed else (k, 1))),
        CODES=codes, DROPOUT=masked, RANKS_FIRST=table.ranks_first,
        BM=strip.rows, BK=strip.columns, RANK=ranks, PRECISION=precision, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
    return _CrossPlan(launch, splits, steps)
