"""Blocks of rows that stay in a core's cache, and workspace memory."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import torch
from torch import Tensor

BLOCK_ELEMENTS = 1024 * 1024
"""Elements of a block: smaller ones make thin products, larger ones leave the cache."""

CACHED_ELEMENTS = 256 * 1024
"""Elements per thread of a block that is read several times: they stay in the cache."""


def cached_elements() -> int:
    """The elements of such a block over all threads."""
    threads = 1 if torch.compiler.is_compiling() else torch.get_num_threads()
    return CACHED_ELEMENTS * threads


def row_blocks(rows: int, columns: int, elements: int | None = None) -> Iterator[slice]:
    """Cut `rows` into slices of about `elements` elements, all of one height but the last."""
    return row_slices(rows, block_height(columns, elements))


def row_slices(rows: int, height: int) -> Iterator[slice]:
    """Cut `rows` into slices of this height; the last may be shorter."""
    for start in range(0, rows, height):
        yield slice(start, min(start + height, rows))


def block_height(columns: int, elements: int | None = None) -> int:
    """The height of those blocks, at least one row."""
    return max(1, (elements or BLOCK_ELEMENTS) // max(1, columns))


_local = threading.local()


def workspace(purpose: str, shape: torch.Size, dtype: torch.dtype, device: torch.device) -> Tensor:
    """An uninitialised tensor, valid until the next call for the same purpose in this thread.

    The buffer grows to the largest requested size and stays. Under torch.compile and off the CPU
    every call gets a tensor of its own: there the allocator reuses memory.
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
