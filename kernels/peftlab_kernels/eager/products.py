"""Products of activations with the frozen weight, widening narrow weights a block at a time.

Where both have one dtype, or autocast narrows the weight, torch's own product is used. For fp32
activations over a weight in 16 or 8 bits the weight is widened to fp32 by blocks of its rows:
no fp32 copy of the whole weight exists, and activations are not rounded. 16-bit activations over
8 bits (w8a16) use one dequantised copy, in a workspace shared by all layers: by blocks, the
products of backward would be summed in 16 bits.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

from peftlab_kernels import row_blocks as blocks
from peftlab_kernels.int8_format import Int8Weight, int8_dequantize
from peftlab_kernels.row_blocks import block_height, row_blocks, workspace

Weight = Tensor | Int8Weight
"""`[N, K]`, or for a tensor `[K, N]` where it is transposed; in 8 bits it is [N, K]."""


def forward(x: Tensor, weight: Weight, bias: Tensor | None, *, transposed: bool) -> Tensor:
    """`x W^T + bias`: x [M, K], weight [N, K] ([K, N] if transposed), bias [N] -> [M, N] as x."""
    if bias is not None and bias.dtype is not x.dtype:
        bias = bias.to(x.dtype)
    if _cast_whole(weight, x.dtype):
        whole = _whole(weight, x.dtype)
        return F.linear(x, whole.T if transposed else whole, bias)
    y = _sum_over_rows(x, weight) if transposed else _columns_by_rows(x, weight)
    return y if bias is None else y.add_(bias)


def backward(dy: Tensor, weight: Weight, *, transposed: bool) -> Tensor:
    """`dy W`: dy [M, N], weight [N, K] ([K, N] if transposed) -> [M, K] in dy's dtype."""
    if _cast_whole(weight, dy.dtype):
        whole = _whole(weight, dy.dtype)
        return dy @ (whole.T if transposed else whole)
    return _columns_by_rows(dy, weight) if transposed else _sum_over_rows(dy, weight)


def out_features_of(weight: Weight, *, transposed: bool) -> int:
    """N, the width of y."""
    matrix = weight.codes if isinstance(weight, Int8Weight) else weight
    return matrix.shape[1 if transposed else 0]


def in_features_of(weight: Weight, *, transposed: bool) -> int:
    """K, the width of x."""
    return out_features_of(weight, transposed=not transposed)


def _cast_whole(weight: Weight, dtype: torch.dtype) -> bool:
    """Whether the weight is cast in one piece: it has the dtype, is small, or is to be narrowed.

    Narrowing by blocks would save less memory and sum the products in 16 bits.
    """
    if isinstance(weight, Int8Weight):
        return weight.codes.numel() <= blocks.BLOCK_ELEMENTS or dtype.itemsize <= 2
    return weight.numel() <= blocks.BLOCK_ELEMENTS or weight.dtype.itemsize >= dtype.itemsize


def _whole(weight: Weight, dtype: torch.dtype) -> Tensor:
    """The weight in the dtype; from 8 bits in a workspace, valid until the next such call."""
    if not isinstance(weight, Int8Weight):
        return weight.to(dtype)
    out = workspace("weight", weight.codes.shape, dtype, weight.codes.device)
    for rows in row_blocks(*weight.codes.shape):
        int8_dequantize(weight.codes[rows], weight.scales[rows], out[rows])
    return out


def _columns_by_rows(x: Tensor, weight: Weight) -> Tensor:
    """`x matrix^T`: each block of the matrix's rows gives as many columns."""
    height, width = _shape(weight)
    out = x.new_empty(x.shape[0], height)
    scratch = _scratch(x, weight)
    for rows in row_blocks(height, width):
        block = _widen(weight, rows, scratch).T
        if torch.compiler.is_compiling():  # it refuses an out= that is not contiguous
            out[:, rows] = x @ block
        else:
            torch.mm(x, block, out=out[:, rows])
    return out


def _sum_over_rows(x: Tensor, weight: Weight) -> Tensor:
    """`x matrix`: each block of the matrix's rows adds its part to every entry."""
    height, width = _shape(weight)
    total = x.new_zeros(x.shape[0], width)
    scratch = _scratch(x, weight)
    for rows in row_blocks(height, width):
        total.addmm_(x[:, rows], _widen(weight, rows, scratch))
    return total


def _shape(weight: Weight) -> torch.Size:
    return weight.codes.shape if isinstance(weight, Int8Weight) else weight.shape


def _scratch(x: Tensor, weight: Weight) -> Tensor:
    height, width = _shape(weight)
    return x.new_empty(min(block_height(width), height), width)


def _widen(weight: Weight, rows: slice, scratch: Tensor) -> Tensor:
    out = scratch[: rows.stop - rows.start]
    if isinstance(weight, Int8Weight):
        return int8_dequantize(weight.codes[rows], weight.scales[rows], out)
    return out.copy_(weight[rows])
