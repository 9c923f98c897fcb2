"""Cutting a matrix into blocks of rows that stay in a core's cache."""

from __future__ import annotations

from collections.abc import Iterator

import torch

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
