"""`dx += D * (g A)` in place: the low-rank part of a dx computed by cuBLAS, under dropout."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.triton.configurations import Strip, Target, configurations, padded_rank
from peftlab_kernels.triton.dot import cast, dot, interpreting, precision_of
from peftlab_kernels.triton.launching import Launch, ceil_div, planned
from peftlab_kernels.triton.philox import Dropout, keep_tile


@triton.jit(do_not_specialize=["M", "seed_low", "seed_high", "threshold"])
def add_masked_kernel(
    G, A, DX, M, K, R, stride_gm, stride_ar, stride_dm,
    seed_low, seed_high, threshold,
    RANK: tl.constexpr, CHUNK: tl.constexpr, BM: tl.constexpr, BK: tl.constexpr,
    PRECISION: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """`dx += D * (g A)` in place, for a dx that cuBLAS has made."""
    m0, k0 = tl.program_id(0) * BM, tl.program_id(1) * BK
    rows, columns, ranks = tl.arange(0, BM), k0 + tl.arange(0, BK), tl.arange(0, CHUNK)
    here = (rows < M - m0)[:, None]
    g_at = G + m0.to(tl.int64) * stride_gm + rows[:, None] * stride_gm + ranks[None, :]
    a_at = A + ranks[:, None] * stride_ar + columns[None, :]
    acc = tl.zeros([BM, BK], tl.float32)
    for rank in tl.range(0, RANK, CHUNK, num_stages=1):
        g = tl.load(g_at + rank, mask=here, other=0.0)
        inside = (rank + ranks < R)[:, None] & (columns < K)[None, :]
        a = tl.load(a_at + rank * stride_ar, mask=inside, other=0.0)
        acc = dot(g, cast(a, g.dtype, UPCAST), acc, PRECISION, UPCAST)
    keep = keep_tile(seed_low, seed_high, threshold, m0, k0, BM, BK)
    dx_at = DX + m0.to(tl.int64) * stride_dm + rows[:, None] * stride_dm + columns[None, :]
    inside = here & (columns < K)[None, :]
    dx = tl.load(dx_at, mask=inside, other=0.0)
    dx = dx.to(tl.float32) + tl.where(keep, acc, 0.0)
    tl.store(dx_at, cast(dx, DX.dtype.element_ty, UPCAST), mask=inside)


def add_masked(
    dx: Tensor,
    g: Tensor,
    a: Tensor,
    *,
    dropout: Dropout,
    target: Target,
    strip: Strip | None = None,
) -> Tensor:
    """`dx += D * (g A)` in place: dx [M, K] contiguous, g [M, padded R], A [R, K] contiguous."""
    launch = _add_plan(
        target, dx.dtype, precision_of(dx.dtype), dx.shape, a.shape[0], a.dtype, strip
    )
    launch((g, a, dx), *dropout[:3])
    return dx


@planned
def _add_plan(
    target: Target,
    dtype: torch.dtype,
    precision: str,
    shape: Sequence[int],
    r: int,
    a_dtype: torch.dtype,
    strip: Strip | None,
) -> Launch:
    m, k = shape
    table = configurations(target, dtype)
    padded = padded_rank(r)
    strip = strip or table.add_masked
    return Launch(
        add_masked_kernel, (ceil_div(m, strip.rows), ceil_div(k, strip.columns)),
        (m, k, r, padded, k, k),
        RANK=padded, CHUNK=min(padded, table.rank_chunk), BM=strip.rows, BK=strip.columns,
        PRECISION=precision, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
