"""The weight's int8 codes made over for a product: turned for dx, or as 16-bit numbers for w8a16.

int8 tensor cores take both operands with the summed dimension contiguous. The codes lie so for y,
not for dx: they are turned into room that every layer uses again, which costs a fraction of what
shuffling bytes in the product's loop would.
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
"""Rows of turned codes begin at multiples of so many bytes, as fast loads want them."""


@triton.jit
def transpose_kernel(Codes, Turned, N, K, stride_n, stride_k, BN: tl.constexpr, BK: tl.constexpr):
    """Turned[K, N] of one block of Codes[N, K]."""
    n0, k0 = tl.program_id(0) * BN, tl.program_id(1) * BK
    n, k = tl.arange(0, BN), tl.arange(0, BK)
    here_n, here_k = n < N - n0, k < K - k0
    at = Codes + n0.to(tl.int64) * stride_n + k0 + n[:, None] * stride_n + k[None, :]
    codes = tl.load(at, mask=here_n[:, None] & here_k[None, :], other=0)
    at = Turned + k0.to(tl.int64) * stride_k + n0 + k[:, None] * stride_k + n[None, :]
    tl.store(at, tl.trans(codes), mask=here_k[:, None] & here_n[None, :])


@triton.jit
def dequantize_kernel(
    Codes, Scales, Out, N, K, stride_n, BN: tl.constexpr, BK: tl.constexpr, UPCAST: tl.constexpr
):
    """Out[N, K] of one block: codes times scales / 127, rounded once."""
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

    Good until the next call: see `workspace`.
    """
    codes = rows_contiguous(codes)
    n, k = codes.shape
    wide = ceil_div(n, ALIGNED) * ALIGNED
    turned = workspace("turned codes", torch.Size((k, wide)), torch.int8, codes.device)[:, :n]
    _turning(target, n, k, codes.stride(0), wide, strip)((codes, turned))
    return turned


@planned
def _turning(
    target: Target, n: int, k: int, stride_n: int, wide: int, strip: Strip | None
) -> Launch:
    strip = strip or int8_configurations(target, torch.bfloat16).transpose
    return Launch(
        transpose_kernel, (ceil_div(n, strip.rows), ceil_div(k, strip.columns)),
        (n, k, stride_n, wide), BN=strip.rows, BK=strip.columns,
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip


def dequantize(
    weight: Int8Weight, dtype: torch.dtype, *, target: Target, strip: Strip | None = None
) -> Tensor:
    """What the weight stands for, [N, K] in `dtype`; good until the next call: see `workspace`."""
    codes, scales = rows_contiguous(weight.codes), weight.scales.contiguous()
    n, k = codes.shape
    out = workspace("weight", codes.shape, dtype, codes.device)
    _widening(target, dtype, n, k, codes.stride(0), strip)((codes, scales, out))
    return out


@planned
def _widening(
    target: Target, dtype: torch.dtype, n: int, k: int, stride_n: int, strip: Strip | None
) -> Launch:
    strip = strip or int8_configurations(target, dtype).dequantize
    return Launch(
        dequantize_kernel, (ceil_div(n, strip.rows), ceil_div(k, strip.columns)), (n, k, stride_n),
        BN=strip.rows, BK=strip.columns, UPCAST=interpreting(),
        num_warps=strip.warps, num_stages=strip.stages,
    )  # fmt: skip
