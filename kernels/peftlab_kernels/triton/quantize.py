"""Quantising rows to 8 bits: `x ~ codes * steps`, a step being the row's largest magnitude / 127.

One program quantises a row: x is read once where a row fits into the registers of a program, else
twice, the second time from L2. Factors of the columns may be folded into x first, as the scales of
the weight's rows are into dy.
"""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows
from peftlab_kernels.triton.configurations import Target
from peftlab_kernels.triton.int8_configurations import Row, int8_configurations
from peftlab_kernels.triton.launching import Launch, planned

SMALLEST = tl.constexpr(1e-36)
"""Rows with nothing larger have codes 0: 127 by their magnitude would be no number."""

TO_INTEGER = tl.constexpr(12582912.0)
"""1.5 * 2^23: added to a small number, it leaves the nearest integer in the lowest bits."""


@triton.jit
def load_row(X, Scales, k, K, SCALED: tl.constexpr, BLOCK: tl.constexpr):
    """fp32 x from column k on, times the scales / 127; zeros past the end."""
    columns = k + tl.arange(0, BLOCK)
    x = tl.load(X + columns, mask=columns < K, other=0.0).to(tl.float32)
    if SCALED:
        x *= tl.load(Scales + columns, mask=columns < K, other=0.0) / 127
    return x


@triton.jit
def magnitude(x):
    """|x| as the integer of its bits: ordered as the numbers are, and NaN above them all."""
    return x.to(tl.int32, bitcast=True) & 0x7FFFFFFF


@triton.jit
def store_codes(Codes, x, k, K, BLOCK: tl.constexpr):
    """The integers nearest to x, ties to even, from column k on."""
    columns = k + tl.arange(0, BLOCK)
    codes = (x + TO_INTEGER).to(tl.int32, bitcast=True).to(tl.int8)
    tl.store(Codes + columns, codes, mask=columns < K)


@triton.jit
def quantize_kernel(
    X, Scales, Codes, Steps, K, stride_xm, stride_cm,
    SCALED: tl.constexpr, ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    """One row; ONCE: of at most BLOCK columns."""
    row = tl.program_id(0).to(tl.int64)
    X += row * stride_xm
    Codes += row * stride_cm
    x = load_row(X, Scales, 0, K, SCALED, BLOCK)
    bits = magnitude(x)
    if not ONCE:
        for k in range(BLOCK, K, BLOCK):
            bits = tl.maximum(bits, magnitude(load_row(X, Scales, k, K, SCALED, BLOCK)))
    largest = tl.max(bits, axis=0).to(tl.float32, bitcast=True)
    tl.store(Steps + row, tl.div_rn(largest, 127.0))
    factor = tl.where(largest > SMALLEST, 127 / tl.maximum(largest, SMALLEST), 0.0)
    if ONCE:
        store_codes(Codes, x * factor, 0, K, BLOCK)
    else:
        for k in range(0, K, BLOCK):
            x = load_row(X, Scales, k, K, SCALED, BLOCK)
            store_codes(Codes, x * factor, k, K, BLOCK)


def quantize_rows(
    x: Tensor, scales: Tensor | None = None, *, target: Target, row: Row | None = None
) -> Int8Rows:
    """`x [M, K]`, or `x * scales / 127` with scales [K], by rows; x's rows are contiguous.

    A row with a NaN or an infinity has it as its step, and arbitrary codes.
    """
    m, k = x.shape
    codes = torch.empty(m, k, dtype=torch.int8, device=x.device)
    steps = torch.empty(m, dtype=torch.float32, device=x.device)
    _plan(target, x.dtype, m, k, x.stride(0), scales is not None, row)((x, scales, codes, steps))
    return Int8Rows(codes, steps)


@planned
def _plan(
    target: Target,
    dtype: torch.dtype,
    m: int,
    k: int,
    stride_xm: int,
    scaled: bool,
    row: Row | None,
) -> Launch:
    if row is None:
        rows = int8_configurations(target, dtype).rows
        row = next((row for row in rows if row.columns >= k), rows[-1])
    return Launch(
        quantize_kernel, (m,), (k, stride_xm, k),
        SCALED=scaled, ONCE=k <= row.columns, BLOCK=row.columns,
        num_warps=row.warps, num_stages=1,
    )  # fmt: skip
