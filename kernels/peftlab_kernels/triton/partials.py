"""Sums over programs: fp32 parts, added in a fixed order, so that two runs agree bit for bit."""

from __future__ import annotations

from typing import NamedTuple

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.triton.dot import cast, interpreting
from peftlab_kernels.triton.launching import Launch, ceil_div, planned

BLOCK = 1024
"""Elements of the sum that a program of 4 warps makes: 16 bytes a thread and part."""


class Sum(NamedTuple):
    """`total [...]`, contiguous, is to be the sum of `parts [splits, ...]` in fp32.

    Where a single program writes it, `parts` is the total itself, and there is nothing to add.
    """

    parts: Tensor
    total: Tensor


@triton.jit
def sum_block(
    Parts, Total, block, count, parts, BLOCK: tl.constexpr, UPCAST: tl.constexpr
):  # fmt: skip
    """One block of BLOCK elements of Total [count], rounded once to its dtype."""
    at = block.to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    part_at = Parts + at
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, parts):
        total += tl.load(part_at, mask=inside, other=0.0)
        part_at += count
    tl.store(Total + at, cast(total, Total.dtype.element_ty, UPCAST), mask=inside)


@triton.jit(do_not_specialize=["parts"])
def sum_kernel(Parts, Total, count, parts, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    """`Total [count]` of `Parts [parts, count]`."""
    sum_block(Parts, Total, tl.program_id(0), count, parts, BLOCK, UPCAST)


@triton.jit(do_not_specialize=["blocks", "parts", "other_parts"])
def sum_two_kernel(
    Parts, Total, OtherParts, Other, count, other_count, blocks, parts, other_parts,
    BLOCK: tl.constexpr, UPCAST: tl.constexpr,
):  # fmt: skip
    """Two sums in one launch: the first `blocks` programs make one, the rest the other."""
    program = tl.program_id(0)
    if program < blocks:
        sum_block(Parts, Total, program, count, parts, BLOCK, UPCAST)
    else:
        sum_block(OtherParts, Other, program - blocks, other_count, other_parts, BLOCK, UPCAST)


def sum_into(total: Tensor, splits: int) -> Sum:
    """A buffer for the parts of `splits` programs; none where one program writes the total."""
    if splits == 1:
        return Sum(total, total)
    return Sum(torch.empty(splits, *total.shape, dtype=torch.float32, device=total.device), total)


def add_up(*sums: Sum) -> None:
    """Compute the totals, two in one launch where possible."""
    left = [each for each in sums if each.parts is not each.total]
    while len(left) > 1:
        one, two = left.pop(), left.pop()
        count, other = one.total.numel(), two.total.numel()
        launch = _two(count, other, one.total.dtype, two.total.dtype)
        launch(
            (one.parts, one.total, two.parts, two.total),
            ceil_div(count, BLOCK), one.parts.shape[0], two.parts.shape[0],
        )  # fmt: skip
    for parts, total in left:
        _one(total.numel(), total.dtype)((parts, total), parts.shape[0])


@planned
def _one(count: int, dtype: torch.dtype) -> Launch:
    return Launch(
        sum_kernel, (ceil_div(count, BLOCK),), (count,),
        BLOCK=BLOCK, UPCAST=interpreting(), num_warps=4,
    )  # fmt: skip


@planned
def _two(count: int, other: int, dtype: torch.dtype, other_dtype: torch.dtype) -> Launch:
    return Launch(
        sum_two_kernel, (ceil_div(count, BLOCK) + ceil_div(other, BLOCK),), (count, other),
        BLOCK=BLOCK, UPCAST=interpreting(), num_warps=4,
    )  # fmt: skip


def split(blocks: int, columns: int, processors: int, least: int) -> tuple[int, int]:
    """Divide `blocks` steps among programs, `columns` of which run side by side already.

    Returns (programs, steps of each): about two programs per processor if there is enough work, but
    at least `least` steps each, because every further program is another part to add.
    """
    wanted = max(1, round(2 * processors / columns))
    steps = max(-(-blocks // wanted), min(least, blocks))
    return -(-blocks // steps), steps
