"""`h = s (D * x) A^T` in one pass over x, the mask drawn on the way.

The same kernel computes `g = s dy B` where nothing else of dy is needed: x = dy, A = B^T, no D. It
accepts x in 8 bits as well, whose codes every float holds exactly; the sum is then multiplied by
the row's step.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows
from peftlab_kernels.triton.configurations import (
    Strip,
    Target,
    configurations,
    padded_rank,
    ranks_at_a_time,
)
from peftlab_kernels.triton.dot import cast, dot, in_triton, interpreting, precision_of, widen
from peftlab_kernels.triton.launching import Launch, ceil_div, planned
from peftlab_kernels.triton.partials import add_up, split, sum_into
from peftlab_kernels.triton.philox import NO_DROPOUT, Dropout, keep_tile


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold", "steps"])
def down_project_kernel(
    X, Steps, A, H, M, K, R, stride_xm, stride_ar, stride_ak, stride_hs, stride_hm,
    seed_low, seed_high, threshold, factor, steps,
    CODES: tl.constexpr, DTYPE: tl.constexpr, DROPOUT: tl.constexpr,
    BM: tl.constexpr, BK: tl.constexpr, RANK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """H[split, rows, ranks] of one block of BM rows, one split of K, one block of RANK ranks.

    CODES: X is in 8 bits, a row of it times its entry of Steps. Products are of DTYPE.
    """
    m0, split, r0 = tl.program_id(0) * BM, tl.program_id(1), tl.program_id(2) * RANK
    rows, inner, ranks = tl.arange(0, BM), tl.arange(0, BK), r0 + tl.arange(0, RANK)
    k0 = split * steps * BK
    x_at = X + m0.to(tl.int64) * stride_xm + k0
    x_at = x_at + rows[:, None] * stride_xm + inner[None, :]
    a_at = A + k0.to(tl.int64) * stride_ak
    a_at = a_at + ranks[:, None] * stride_ar + inner[None, :] * stride_ak
    acc = tl.zeros([BM, RANK], tl.float32)
    for _ in range(0, steps):
        columns = (inner < K - k0)[None, :]
        x = tl.load(x_at, mask=(rows < M - m0)[:, None] & columns, other=0)
        x = widen(x, DTYPE, UPCAST)
        a = tl.load(a_at, mask=(ranks < R)[:, None] & columns, other=0.0)
        if DROPOUT:
            keep = keep_tile(seed_low, seed_high, threshold, m0, k0, BM, BK)
            x = tl.where(keep, x, 0.0)
        acc = dot(x, tl.trans(cast(a, x.dtype, UPCAST)), acc, PRECISION, UPCAST)
        k0 += BK
        x_at += BK
        a_at += BK * stride_ak
    acc *= factor
    if CODES:
        acc *= tl.load(Steps + m0 + rows, mask=rows < M - m0, other=0.0)[:, None]
    h_at = H + split.to(tl.int64) * stride_hs + m0.to(tl.int64) * stride_hm
    h_at = h_at + rows[:, None] * stride_hm + ranks[None, :]
    tl.store(h_at, cast(acc, H.dtype.element_ty, UPCAST), mask=(rows < M - m0)[:, None])


def down_project(
    x: Tensor | Int8Rows,
    a: Tensor,
    *,
    factor: float,
    target: Target,
    dtype: torch.dtype | None = None,
    dropout: Dropout = NO_DROPOUT,
    strip: Strip | None = None,
) -> Tensor:
    """`factor (D * x) A^T`: x [M, K] with rows contiguous, A [R, K] of any strides and dtype.

    Returns [M, padded R] in x's dtype, or, x being in 8 bits, in `dtype`; zero past R.
    """
    x, row_steps = x if isinstance(x, Int8Rows) else (x, None)
    dtype = dtype or x.dtype
    plan = _plan(
        target, dtype, precision_of(dtype), x.shape, a.shape[0], x.stride(0), a.stride(), a.dtype,
        row_steps is not None, dropout.threshold > 0, strip,
    )  # fmt: skip
    h = torch.empty(plan.shape, dtype=dtype, device=x.device)
    total = sum_into(h, plan.splits)
    plan.launch((x, row_steps, a, total.parts), *dropout[:3], factor, plan.steps)
    add_up(total)
    return h


class _Plan(NamedTuple):
    launch: Launch
    shape: tuple[int, int]
    splits: int
    steps: int


@planned
def _plan(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    shape: Sequence[int],
    r: int,
    stride_xm: int,
    a_strides: tuple[int, ...],
    a_dtype: torch.dtype,
    codes: bool,
    masked: bool,
    strip: Strip | None,
) -> _Plan:
    m, k = shape
    table = configurations(target, dtype)
    strips = table.down_dropout if masked else table.down
    padded = padded_rank(r)
    ranks = ranks_at_a_time(padded, strips)
    strip = strip or strips[ranks]
    row_blocks, rank_blocks = ceil_div(m, strip.rows), padded // ranks
    splits, steps = split(
        ceil_div(k, strip.columns), row_blocks * rank_blocks, target.processors, least=4
    )
    launch = Launch(
        down_project_kernel, (row_blocks, splits, rank_blocks),
        (m, k, r, stride_xm, *a_strides, m * padded, padded),
        CODES=codes, DTYPE=in_triton(dtype), DROPOUT=masked,
        BM=strip.rows, BK=strip.columns, RANK=ranks, PRECISION=precision, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
    return _Plan(launch, (m, padded), splits, steps)
