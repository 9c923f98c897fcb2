"""Room that every layer uses again: one buffer per purpose, dtype, device and thread."""

from __future__ import annotations

import threading

import torch
from torch import Tensor

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
