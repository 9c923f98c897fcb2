"""Memory that is reused.

Mapping a new page costs more than filling it with a sum: merging 16-bit matrices one after another,
each into new memory, spends most of its time in the kernel.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch


class Scratch:
    """Tensors by their use, each kept at the largest size requested so far."""

    def __init__(self) -> None:
        self._memory: dict[str, torch.Tensor] = {}

    def tensor(self, use: str, shape: Sequence[int], dtype: torch.dtype) -> torch.Tensor:
        """Uninitialised contiguous memory; overwrites the previous tensor of `use`."""
        wanted = math.prod(shape) * dtype.itemsize
        held = self._memory.get(use)
        if held is None or held.numel() < wanted:
            self._memory.pop(use, None)  # freed before the next is allocated
            held = self._memory[use] = torch.empty(wanted, dtype=torch.uint8)
        return held[:wanted].view(dtype).view(tuple(shape))
