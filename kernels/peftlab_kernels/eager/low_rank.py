"""The thin products of a LoRA layer in plain torch: h, g, dA, dB, and the blocks for adding g A.

x may be an activation or its int8 codes: a row's step is then a factor of that row of h, and of
the row of g that it is multiplied with in dA; a code is exact in every floating dtype.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from peftlab_kernels.eager.dropout_mask import (
    draw_rows,
    drop,
    kept_rows,
    scale_of_kept,
    scratch,
)
from peftlab_kernels.row_blocks import cached_elements, row_blocks


def down_project(
    x: Tensor, a: Tensor, mask: Tensor | None, scaling: float, dropout: float
) -> Tensor:
    """`h = s D x A^T` [M, R] in A's dtype; fills the mask in the same pass."""
    if mask is None and a.dtype is x.dtype:
        return (x @ a.T).mul_(scaling)
    h = a.new_empty(x.shape[0], a.shape[0])
    if mask is None:
        for rows in row_blocks(*x.shape):
            torch.mm(x[rows].to(a.dtype), a.T, out=h[rows])
        return h.mul_(scaling)
    buffer = scratch(mask, x.shape[1], x.dtype)
    for rows, keep in draw_rows(mask, x.shape[1], dropout):
        torch.mm(drop(x[rows], keep, buffer[: keep.shape[0]]).to(a.dtype), a.T, out=h[rows])
    return h.mul_(scaling * scale_of_kept(dropout))


def times(dy: Tensor, b: Tensor) -> Tensor:
    """`dy b` [M, R] in b's dtype; dy of another dtype is cast by blocks of rows."""
    if dy.dtype is b.dtype:
        return dy @ b
    g = b.new_empty(dy.shape[0], b.shape[1])
    for rows in row_blocks(*dy.shape):
        torch.mm(dy[rows].to(b.dtype), b, out=g[rows])
    return g


def of_transposed(h: Tensor, dy: Tensor) -> Tensor:
    """`dy^T h` [N, R], contiguous: as (h^T dy)^T, which is ten times faster on a CPU."""
    return (h.T @ dy).T.contiguous()


def cross(g: Tensor, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """`g^T (D x)` [R, K] in g's dtype, in fp32 with a mask; D's factor is g's.

    An x of another dtype is cast to g's by blocks of rows.
    """
    if mask is None and g.dtype is x.dtype:
        return g.T @ x
    wide = torch.promote_types(g.dtype, torch.float32)
    total = g.new_zeros(g.shape[1], x.shape[1], dtype=wide)
    if mask is None:
        for rows in row_blocks(*x.shape):
            total += g[rows].T @ x[rows].to(g.dtype)
        return total
    buffer = scratch(mask, x.shape[1], x.dtype)
    for rows, keep in kept_rows(mask, x.shape[1]):
        total += g[rows].T @ drop(x[rows], keep, buffer[: keep.shape[0]]).to(g.dtype)
    return total


def masked_blocks(
    mask: Tensor | None, rows: int, columns: int
) -> Iterator[tuple[slice, Tensor | None]]:
    """Blocks of rows with what each keeps; None where nothing is dropped."""
    if mask is None:
        yield from ((block, None) for block in row_blocks(rows, columns, cached_elements()))
    else:
        yield from kept_rows(mask, columns)
