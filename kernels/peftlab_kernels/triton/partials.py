"""Sums over programs: fp32 parts, added in a fixed order, so that two runs agree bit for bit."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

from peftlab_kernels.triton.dot import cast, interpreting
from peftlab_kernels.triton.launching import ceil_div, launch

BLOCK = 1024
"""Elements of the sum that a program of 4 warps makes: 16 bytes a thread and part."""


@triton.jit(do_not_specialize=["parts"])
def sum_kernel(Parts, Total, count, parts, BLOCK: tl.constexpr, UPCAST: tl.constexpr):
    at = tl.program_id(0).to(tl.int64) * BLOCK + tl.arange(0, BLOCK)
    inside = at < count
    part_at = Parts + at
    total = tl.zeros([BLOCK], tl.float32)
    for _ in range(0, parts):
        total += tl.load(part_at, mask=inside, other=0.0)
        part_at += count
    tl.store(Total + at, cast(total, Total.dtype.element_ty, UPCAST), mask=inside)


def parts_of(total: Tensor, parts: int) -> Tensor:
    """Where `parts` programs write: [parts, *total.shape] in fp32, or one of them total itself."""
    if parts == 1:
        return total.unsqueeze(0)
    return torch.empty(parts, *total.shape, dtype=torch.float32, device=total.device)


def add_up(parts: Tensor, total: Tensor) -> Tensor:
    """`total [...]`, contiguous, of `parts_of(total, ...)`, rounded once to total's dtype."""
    if parts.shape[0] > 1:
        count = total.numel()
        launch(
            sum_kernel, (ceil_div(count, BLOCK),), (parts, total), (count, parts.shape[0]),
            BLOCK=BLOCK, UPCAST=interpreting(), num_warps=4,
        )  # fmt: skip
    return total


def split(blocks: int, columns: int, processors: int, least: int) -> tuple[int, int]:
    """Share `blocks` steps among programs, `columns` of them standing side by side already.

    Returns (programs, steps of each): two programs a processor if there is work for as many, but
    not under `least` steps each, because every program more is one part more to be added.
    """
    wanted = -(-2 * processors // columns)
    steps = max(-(-blocks // wanted), min(least, blocks))
    return -(-blocks // steps), steps
