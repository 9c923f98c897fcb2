"""Shared by the compile gate's cases: sizes, the case itself, tensors without memory."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from peftlab_kernels.triton.configurations import Strip, Tile
from peftlab_kernels.triton.philox import Dropout

M, IN, OUT = 8192, 4096, 14336
TAIL = (4112, 14352)
"""Multiples of 16, but not of any tile."""
RAGGED = (4099, 14341)
DROPOUT = Dropout(123456789, 987654321, 3277, 1.05)
SHORT = {torch.bfloat16: "bf16", torch.float16: "fp16", torch.float32: "fp32"}


@dataclass(frozen=True, slots=True)
class Case:
    """One call that launches the kernels to be compiled, and its names in the table."""

    target: str
    operator: str
    variant: str
    configuration: str
    dtype: str
    call: Callable[[], object]
    gated: bool = True


def meta(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.empty(*shape, dtype=dtype, device="meta")


def spell(block: Tile | Strip) -> str:
    if isinstance(block, Strip):
        return f"{block.rows}x{block.columns} w{block.warps}s{block.stages}"
    source = " tma" if block.tma else ""
    return f"{block.m}x{block.n}x{block.k} w{block.warps}s{block.stages}{source}"
