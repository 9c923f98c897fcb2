"""Memory that is used again and again.

A page of fresh memory costs more to map than to fill with a sum: merging 16-bit matrices one after
another, each into memory of its own, spends most of its time in the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Scratch:
    """Tensors by what they are for, each kept at the largest size that was asked of it."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Unset memory of that shape, contiguous; what `use` was given before is overwritten."""
        wanted = math.prod(shape) * dtype.itemsize
        held = self._memory.get(use)
        if held is None or held.numel() < wanted:
            self._memory.pop(use, None)  # before the next is there, not after
            held = self._memory[use] = torch.empty(wanted, dtype=torch.uint8)
        return held[:wanted].view(dtype).view(tuple(shape))
