"""The weight's int8 codes prepared for a product: transposed for dx, dequantised for w8a16.

int8 tensor cores need the summed dimension contiguous in both operands. The codes satisfy that for
y, not for dx: they are transposed into a buffer shared by all layers, which costs a fraction of
shuffling bytes in the product's loop.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.row_blocks import workspace
from peftlab_kernels.triton.configurations import Strip, Target
from peftlab_kernels.triton.dot import cast, interpreting
from peftlab_kernels.triton.int8_configurations import int8_configurations
from peftlab_kernels.triton.launching import Launch, ceil_div, planned
from peftlab_kernels.triton.operands import rows_contiguous

ALIGNED = 16
"""Rows of transposed codes start at multiples of this many bytes, as fast loads require."""


@triton.jit
def transpose_kernel(
    Codes, Transposed, N, K, stride_n, stride_k, BN: tl.constexpr, BK: tl.constexpr
):
    """One block of Codes[N, K], written to Transposed[K, N]."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = tl.arange(0, BN), tl.arange(0, BK)
    here_n, here_k = n < N - n0, k < K - k0
    at = Codes + n0.to(tl.int64) * stride_n + k0 + n[:, None] * stride_n + k[None, :]
    codes = tl.load(at, mask=here_n[:, None] & here_k[None, :], other=0)
    at = Transposed + k0.to(tl.int64) * stride_k + n0 + k[:, None] * stride_k + n[None, :]
    tl.store(at, tl.trans(codes), mask=here_k[:, None] & here_n[None, :])


@triton.jit
def dequantize_kernel(
    Codes, Scales, Out, N, K, stride_n, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr
):
    """One block of Out[N, K]: codes times scales / 127, rounded once."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = tl.arange(0, BN), tl.arange(0, BK)
    inside = (n < N - n0)[:, None] & (k < K - k0)[None, :]
    factors = tl.div_rn(tl.load(Scales + n0 + n, mask=n < N - n0, other=0.0), 127.0)
    at = Codes + n0.to(tl.int64) * stride_n + k0 + n[:, None] * stride_n + k[None, :]
    w = tl.load(at, mask=inside, other=0).to(tl.float32) * factors[:, None]
    at = Out + n0.to(tl.int64) * K + k0 + n[:, None] * K + k[None, :]
    tl.store(at, cast(w, Out.dtype.element_ty, UPCAST), mask=inside)


def transpose(codes: Tensor, *, target: Target, strip: Strip | None = None) -> Tensor:
    """`codes [N, K]` as [K, N] with rows contiguous and aligned.

    The result is valid until the next call: see `workspace`.
    """
    codes = rows_contiguous(codes)
    n, k = codes.shape
    row = ceil_div(n, ALIGNED) * ALIGNED
    shape = torch.Size((k, row))
    transposed = workspace("transposed codes", shape, torch.int8, codes.device)[:, :n]
    _transpose_plan(target, n, k, codes.stride(0), row, strip)((codes, transposed))
    return transposed


@planned
def _transpose_plan(
    target: Target, n: int, k: int, stride_n: int, row: int, strip: Strip | None
) -> Launch:
    strip = strip or int8_configurations(target, torch.bfloat16).transpose
    return Launch(
        transpose_kernel, (ceil_div(n, strip.rows), ceil_div(k, strip.columns)),
        (n, k, stride_n, row), BN=strip.rows, BK=strip.columns,
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip


def dequantize(
    weight: Int8Weight, dtype: torch.dtype, *, target: Target, strip: Strip | None = None
) -> Tensor:
    """The dequantised weight [N, K] in `dtype`, valid until the next call: see `workspace`."""
    codes, scales = rows_contiguous(weight.codes), weight.scales.contiguous()
    n, k = codes.shape
    out = workspace("weight", codes.shape, dtype, codes.device)
    _dequantize_plan(target, dtype, n, k, codes.stride(0), strip)((codes, scales, out))
    return out


@planned
def _dequantize_plan(
    target: Target, dtype: torch.dtype, n: int, k: int, stride_n: int, strip: Strip | None
) -> Launch:
    strip = strip or int8_configurations(target, dtype).dequantize
    return Launch(
        dequantize_kernel, (ceil_div(n, strip.rows), ceil_div(k, strip.columns)), (n, k, stride_n),
        BN=strip.rows, BK=strip.columns, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
