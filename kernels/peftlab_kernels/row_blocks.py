"""Cutting a matrix into blocks of rows that stay in a core's cache, and memory to work in."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1024 * 1024
"""Elements at a time: smaller blocks make thin products, larger ones leave the cache."""


CACHED_ELEMENTS = 256 * 1024
"""Elements for each thread where a block is gone through several times: they stay in its cache."""


def cached_elements() -> int:
    """The elements of a block that all threads go through together."""
    threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
    return CACHED_ELEMENTS * threads


def row_blocks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Cut `rows` into slices of about `elements` elements, all of one height but the last."""
    step = block_height(columns, elements)
    for start in range(0, rows, step):
        yield slice(start, min(start + step, rows))


def block_height(columns: int, elements: int | None = None) -> int:
    """The height of those blocks, at least one row."""
    return max(1, (elements or BLOCK_ELEMENTS) // max(1, columns))


_local = threading.local()


def workspace(purpose: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, good until the next call for the same purpose in this thread.

    It grows to the largest that was asked for and stays. What torch.compile traces, and what is
    not on a CPU, gets a tensor of its own: there the allocator reuses memory as well.
    """
    if torch.compiler.is_compiling() or device.type != "cpu":
        return torch.empty(shape, dtype=dtype, device=device)
    kept: dict[tuple[str, torch.dtype], Tensor] = _local.__dict__.setdefault("kept", {})
    size = shape.numel()
    buffer = kept.get((purpose, dtype))
    if buffer is None or buffer.numel() < size:
        # Made outside inference mode, so that any later call may write into it.
        with torch.inference_mode(False):
            buffer = kept[purpose, dtype] = torch.empty(size, dtype=dtype, device=device)
    return buffer[:size].view(shape)
