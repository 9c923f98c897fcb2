"""Dropout masks: on a CPU drawn fast and stored as one bit per element, elsewhere torch's own.

torch's dropout on a CPU draws one number at a time and stores a float per element. Here numpy's
SFC64 draws 64 bits at a time, of which each element compares sixteen with the threshold. The seed
is drawn from torch's generator, so that `torch.manual_seed`, and the state that gradient
checkpointing restores, determine the mask as they do torch's.
"""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import torch
from torch import Tensor

from peftlab_kernels.row_blocks import cached_elements, row_blocks

_DRAWS = 1 << 16
_INTEGERS = {1: torch.int8, 2: torch.int16, 4: torch.int32, 8: torch.int64}
"""The integer dtype of the same width, by bytes."""


def scale_of_kept(dropout: float) -> float:
    """The factor of the kept elements: 1 / (1 - dropout), as `draw_rows` rounds it."""
    return _DRAWS / (_DRAWS - _threshold(dropout))


def empty_mask(x: Tensor) -> Tensor:
    """An uninitialised mask of `x [M, K]`, for `draw_rows` to fill.

    uint8 [M, K / 8] on a CPU; elsewhere, and under torch.compile, bool [M, K].
    """
    if x.device.type == "cpu" and not torch.compiler.is_compiling():
        return x.new_empty(x.shape[0], -(-x.shape[1] // 8), dtype=torch.uint8)
    return x.new_empty(x.shape, dtype=torch.bool)


def draw_rows(mask: Tensor, columns: int, dropout: float) -> Iterator[tuple[slice, Tensor]]:
    """Fill `mask`; yield each block of rows with its mask, bool [rows, columns]."""
    threshold = _threshold(dropout)
    if mask.dtype is torch.bool:
        mask.bernoulli_(1.0 - threshold / _DRAWS)
        yield slice(0, mask.shape[0]), mask
        return
    seed = int(torch.randint(0, 2**62, (1,), dtype=torch.int64, device="cpu").item())
    stream = np.random.SFC64(seed)
    packed = mask.numpy()
    words = -(-columns // 4)  # a row, so that the mask does not depend on where blocks end
    for rows in row_blocks(mask.shape[0], columns, cached_elements()):
        count = rows.stop - rows.start
        draws = stream.random_raw(count * words).view(np.uint16).reshape(count, 4 * words)
        keep = np.ascontiguousarray((draws >= threshold)[:, :columns])
        packed[rows] = np.packbits(keep, axis=1)
        yield rows, torch.from_numpy(keep)


def kept_rows(mask: Tensor, columns: int) -> Iterator[tuple[slice, Tensor]]:
    """The blocks that `draw_rows` yielded, from the filled mask or from some rows of it."""
    if mask.dtype is torch.bool:
        yield slice(0, mask.shape[0]), mask
        return
    packed = mask.numpy()
    for rows in row_blocks(mask.shape[0], columns, cached_elements()):
        bits = np.unpackbits(packed[rows], axis=1, count=columns)
        yield rows, torch.from_numpy(bits.view(np.bool_))


def drop(tensor: Tensor, keep: Tensor, out: Tensor) -> Tensor:
    """`tensor` with zeros where `keep`, bool of its shape, is False; not scaled.

    Written into `out`, which may be `tensor` itself, except under torch.compile. On a CPU the bits
    are multiplied as integers: torch takes five times as long for a product of floating and boolean
    tensors.
    """
    if tensor.device.type != "cpu":
        return torch.mul(tensor, keep, out=out)
    if torch.compiler.is_compiling():
        return tensor * keep
    integer = _INTEGERS[tensor.element_size()]
    np.multiply(
        tensor.view(integer).numpy(), keep.numpy().view(np.int8), out=out.view(integer).numpy()
    )
    return out


def scratch(mask: Tensor, columns: int, dtype: torch.dtype) -> Tensor:
    """A buffer for the largest block of rows that `draw_rows` or `kept_rows` yields."""
    rows = mask.shape[0]
    if mask.dtype is not torch.bool:
        rows = min(rows, max(1, cached_elements() // max(1, columns)))
    return mask.new_empty(rows, columns, dtype=dtype)


def _threshold(dropout: float) -> int:
    # At least one draw keeps: 1 / (1 - p) stays finite however close p is to 1.
    return min(round(dropout * _DRAWS), _DRAWS - 1)
