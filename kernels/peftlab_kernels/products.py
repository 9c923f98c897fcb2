"""Products of activations with the frozen weight, widening 16-bit weights a block at a time.

Where both have one dtype, or autocast narrows the weight, torch's product is as good as any. fp32
activations over a 16-bit weight are this file's reason: the weight is widened to fp32 by blocks of
its rows, so that neither a whole fp32 copy of it exists nor the activations are rounded.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

BLOCK_ELEMENTS = 1024 * 1024
"""Elements widened at a time: smaller blocks make thin products, larger ones leave the cache."""


def row_blocks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Cut `rows` into slices of about `elements` elements, all of one height but the last."""
    step = max(1, (elements or BLOCK_ELEMENTS) // max(1, columns))
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def forward(x: Tensor, weight: Tensor, bias: Tensor | None, *, transposed: bool) -> Tensor:
    """`x W^T + bias`: x [M, K], weight [N, K] ([K, N] if transposed), bias [N] -> [M, N] as x."""
    if bias is not None and bias.dtype is not x.dtype:
        bias = bias.to(x.dtype)
    if _goes_whole(weight, x.dtype):
        weight = weight.to(x.dtype)
        return F.linear(x, weight.T if transposed else weight, bias)
    y = _sum_over_rows(x, weight) if transposed else _columns_by_rows(x, weight)
    return y if bias is None else y.add_(bias)


def backward(dy: Tensor, weight: Tensor, *, transposed: bool) -> Tensor:
    """`dy W`: dy [M, N], weight [N, K] ([K, N] if transposed) -> [M, K] in dy's dtype."""
    if _goes_whole(weight, dy.dtype):
        weight = weight.to(dy.dtype)
        return dy @ (weight.T if transposed else weight)
    return _columns_by_rows(dy, weight) if transposed else _sum_over_rows(dy, weight)


def _goes_whole(weight: Tensor, dtype: torch.dtype) -> bool:
    """Whether the weight is brought to the dtype in one piece: the same, small, or to be narrowed.

    Narrowed blocks would save less, and their products would be summed in 16 bits.
    """
    return weight.numel() <= BLOCK_ELEMENTS or weight.dtype.itemsize >= dtype.itemsize


def _columns_by_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """`x matrix^T`, each block of the matrix's rows making as many columns."""
    out = x.new_empty(x.shape[0], matrix.shape[0])
    scratch = _scratch(x, matrix)
    for rows in row_blocks(*matrix.shape):
        block = _widen(matrix[rows], scratch).T
        if torch.compiler.is_compiling():  # which refuses an out= that is not contiguous
            out[:, rows] = x @ block
        else:
            torch.mm(x, block, out=out[:, rows])
    return out


def _sum_over_rows(x: Tensor, matrix: Tensor) -> Tensor:
    """`x matrix`, each block of the matrix's rows adding its share of every entry."""
    total = x.new_zeros(x.shape[0], matrix.shape[1])
    scratch = _scratch(x, matrix)
    for rows in row_blocks(*matrix.shape):
        total.addmm_(x[:, rows], _widen(matrix[rows], scratch))
    return total


def _scratch(x: Tensor, matrix: Tensor) -> Tensor:
    rows = max(1, BLOCK_ELEMENTS // max(1, matrix.shape[1]))
    return x.new_empty(min(rows, matrix.shape[0]), matrix.shape[1])


def _widen(block: Tensor, scratch: Tensor) -> Tensor:
    return scratch[: block.shape[0]].copy_(block)
