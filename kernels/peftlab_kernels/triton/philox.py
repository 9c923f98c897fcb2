"""Dropout masks from a counter-based generator: never stored, drawn again where needed.

One call of Philox 4x32 gives eight 16-bit draws, for eight neighbouring columns of a row. Counter
(row, column // 8), key seed: every kernel and every tile shape draws the same mask. Seven rounds
are the fewest that pass BigCrush (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2,
3"). An element is dropped where its draw lies below `threshold`.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.triton.launching import Launch, ceil_div

DRAWS = 1 << 16


@triton.jit
def keep_tile(
    seed_low, seed_high, threshold, row, column, ROWS: tl.constexpr, COLUMNS: tl.constexpr
):
    """Which of the elements from (row, column) on are kept: bool [ROWS, COLUMNS].

    `column` and COLUMNS are multiples of 8, COLUMNS 16 at least.
    """
    rows = row + tl.arange(0, ROWS)
    groups = column // 8 + tl.arange(0, COLUMNS // 8)
    zero = tl.zeros([ROWS, COLUMNS // 8], tl.uint32)
    w0, w1, w2, w3 = tl.philox_impl(
        rows.to(tl.uint32)[:, None] + zero,
        groups.to(tl.uint32)[None, :] + zero,
        zero,
        zero,
        zero + seed_low.to(tl.uint32),
        zero + seed_high.to(tl.uint32),
        7,
    )
    # `join` makes a new fastest dimension: words 0, 1, 2, 3, then each one's low and high half.
    words = tl.join(tl.join(w0, w2), tl.join(w1, w3))
    low = (words & 0xFFFF) >= threshold.to(tl.uint32)
    high = (words >> 16) >= threshold.to(tl.uint32)
    return tl.reshape(tl.join(low, high), [ROWS, COLUMNS])


class Dropout(NamedTuple):
    """A mask's parameters for kernels: the seed in two words, the threshold, and the scale of kept
    elements."""

    seed_low: int
    seed_high: int
    threshold: int
    scale: float


NO_DROPOUT = Dropout(0, 0, 0, 1.0)


def draw_seed() -> Tensor:
    """An int64 seed of one element, on the CPU.

    Drawn from torch's own generator, so that `torch.manual_seed`, and the state that gradient
    checkpointing restores, determine the mask; no kernel has to wait for it.
    """
    return torch.randint(0, 2**63 - 1, (1,), dtype=torch.int64, device="cpu")


def dropout_of(seed: Tensor | None, probability: float) -> Dropout:
    """The mask of this seed; the scale is that of the probability rounded to 16 bits."""
    if seed is None or probability == 0:
        return NO_DROPOUT
    value = int(seed.item())
    # At least one draw keeps: the scale stays finite however close the probability is to 1.
    threshold = min(round(probability * DRAWS), DRAWS - 1)
    return Dropout(
        _signed(value & 0xFFFFFFFF), _signed(value >> 32), threshold, DRAWS / (DRAWS - threshold)
    )


def _signed(word: int) -> int:
    """The same 32 bits as an int32, Triton's default type of an argument."""
    return word - (1 << 32) if word >= 1 << 31 else word


@triton.jit(do_not_specialize=["seed_low", "seed_high", "threshold", "rows"])
def write_mask_kernel(
    Mask, rows, columns, seed_low, seed_high, threshold, BM: tl.constexpr, BN: tl.constexpr
):
    """One block of the mask `Mask [rows, columns]`, as int8."""
    row, column = tl.program_id(0) * BM, tl.program_id(1) * BN
    keep = keep_tile(seed_low, seed_high, threshold, row, column, BM, BN)
    at_row, at_column = row + tl.arange(0, BM), column + tl.arange(0, BN)
    here = at_row.to(tl.int64)[:, None] * columns + at_column[None, :]
    inside = (at_row < rows)[:, None] & (at_column < columns)[None, :]
    tl.store(Mask + here, keep.to(tl.int8), mask=inside)


def write_mask(
    dropout: Dropout,
    rows: int,
    columns: int,
    device: torch.device,
    tile: tuple[int, int] = (32, 64),
) -> Tensor:
    """The mask, bool [rows, columns], for tests and diagnosis; no operator stores it."""
    mask = torch.zeros(rows, columns, dtype=torch.int8, device=device)
    grid = (ceil_div(rows, tile[0]), ceil_div(columns, tile[1]))
    Launch(write_mask_kernel, grid, (rows, columns), BM=tile[0], BN=tile[1])((mask,), *dropout[:3])
    return mask.bool()
