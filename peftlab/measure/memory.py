"""Peak memory, measured: anonymous memory on a CPU, the allocator's own peak on CUDA."""

from __future__ import annotations

import bisect
import gc
import os
import resource
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self

from peftlab.measure.allocator import return_free_memory

if TYPE_CHECKING:
    import torch
    from torch import nn

_STATUS = Path("/proc/self/status")


@dataclass(frozen=True, slots=True)
class MemoryParts:
    """A peak in bytes, by part. `activations` is everything but the other three."""

    total: int
    weights: int
    gradients: int
    optimizer: int
    activations: int


def anonymous_memory() -> int:
    """Bytes of this process that no file backs (RssAnon + RssShmem): no mapped checkpoints.

    Where the kernel does not report it (not Linux), the highest resident size so far instead.
    """
    if not _STATUS.exists():
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024
    return _anonymous(_STATUS.read_bytes())


def _anonymous(status: bytes) -> int:
    kib = 0
    for field in (b"RssAnon:", b"RssShmem:"):
        start = status.find(field)
        if start >= 0:
            kib += int(status[start + len(field) :].split(None, 1)[0])
    return kib * 1024


def mapped_weights(model: nn.Module) -> int:
    """Bytes of a model's weights that are in mapped files and unchanged since.

    Transformers maps a checkpoint instead of reading it: frozen weights are then not anonymous
    memory, although the run needs them. A page that was written to is anonymous and not counted
    here. 0 where the kernel does not report it (not Linux), and for weights on a device.
    """
    maps = Path("/proc/self/smaps")
    addresses = sorted(
        tensor.untyped_storage().data_ptr()
        for tensor in (*model.parameters(), *model.buffers())
        if tensor.device.type == "cpu"
    )
    if not maps.exists() or not addresses:
        return 0
    kib, counted = 0, False
    for line in maps.read_bytes().splitlines():
        field, _, rest = line.partition(b":")
        if b"-" in field:
            # "start-end mode offset device inode path": a mapping with an inode has a file.
            span, _, _, _, inode, *_ = line.split()
            start, end = (int(part, 16) for part in span.split(b"-"))
            first = bisect.bisect_left(addresses, start)
            counted = inode != b"0" and first < len(addresses) and addresses[first] < end
        elif counted and field == b"Size":
            kib += int(rest.split()[0])
        elif counted and field == b"Anonymous":
            kib -= int(rest.split()[0])
    return kib * 1024


class PeakMemory:
    """Context manager: the highest memory inside the block minus its value on entry, in bytes.

    On a CPU a thread samples anonymous memory every `interval` seconds; a buffer with a shorter
    life can be missed once, but hardly in every step; sampling more often would disturb other
    measurements. With `device` on CUDA it is the caching allocator's peak, which is exact. Import
    what the block needs before it: libraries take hundreds of megabytes of anonymous memory.

    `peak` is readable inside the block (so far) and after it.
    """

    def __init__(self, *, device: torch.device | None = None, interval: float = 0.02) -> None:
        self._device = device if device is not None and device.type == "cuda" else None
        self._interval = interval
        self._before = 0
        self._highest = 0
        self._stopping = False
        self._thread: threading.Thread | None = None

    def __enter__(self) -> Self:
        # Garbage and freed heap of earlier work must not be reused by the block unnoticed.
        gc.collect()
        return_free_memory()
        if self._device is not None:
            import torch

            torch.cuda.synchronize(self._device)
            torch.cuda.reset_peak_memory_stats(self._device)
            self._before = torch.cuda.memory_allocated(self._device)
            self._highest = self._before
            return self
        self._before = self._highest = anonymous_memory()
        if _STATUS.exists():
            self._stopping = False
            self._thread = threading.Thread(target=self._sample, name="peak-memory", daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._update()
        if self._thread is not None:
            self._stopping = True
            self._thread.join()
            self._thread = None
        self._device = None

    @property
    def peak(self) -> int:
        """Bytes above the value on entry, so far."""
        self._update()
        return max(0, self._highest - self._before)

    def _update(self) -> None:
        if self._device is not None:
            import torch

            self._highest = max(self._highest, torch.cuda.max_memory_allocated(self._device))
        elif self._thread is not None:
            self._highest = max(self._highest, anonymous_memory())

    def _sample(self) -> None:
        descriptor = os.open(_STATUS, os.O_RDONLY)
        try:
            while not self._stopping:
                # Cheaper than waiting for an event, and the block's end is noticed within one
                # interval.
                time.sleep(self._interval)
                current = _anonymous(os.pread(descriptor, 8192, 0))
                if current > self._highest:
                    self._highest = current
        finally:
            os.close(descriptor)


def tensor_bytes(tensors: Iterable[torch.Tensor]) -> int:
    """Bytes of the storages behind tensors, a shared storage (tied weights) once."""
    storages = {}
    for tensor in tensors:
        if not tensor.is_meta:
            storage = tensor.untyped_storage()
            storages[storage.data_ptr(), tensor.device] = storage.nbytes()
    return sum(storages.values())


def weight_bytes(model: nn.Module) -> int:
    """Bytes of a model's parameters and buffers at rest, int8 weights' scales included."""

    def tensors() -> Iterable[torch.Tensor]:
        for parameter in model.parameters():
            yield parameter
            # bitsandbytes keeps the row scales, or 4-bit blocks' scales, on the parameter.
            scales = getattr(parameter, "SCB", None)
            if scales is not None:
                yield scales
            blocks = getattr(parameter, "quant_state", None)
            if blocks is not None:
                yield from (blocks.absmax, blocks.code)
        yield from model.buffers()
        for module in model.modules():
            # ... and moves codes and scales into `state` at the first forward.
            state = getattr(module, "state", None)
            for name in ("CB", "SCB"):
                moved = getattr(state, name, None)
                if moved is not None:
                    yield moved

    return tensor_bytes(tensors())


def gradient_bytes(model: nn.Module) -> int:
    """Bytes of the gradients of a model's trainable parameters, allocated now or not."""
    return sum(p.numel() * p.element_size() for p in model.parameters() if p.requires_grad)


def optimizer_bytes(optimizer: torch.optim.Optimizer) -> int:
    """Bytes of an optimizer's state tensors."""
    import torch

    def tensors(value: Any) -> Iterable[torch.Tensor]:
        if isinstance(value, torch.Tensor):
            yield value
        elif isinstance(value, dict):
            for inner in value.values():
                yield from tensors(inner)
        elif isinstance(value, list | tuple):
            for inner in value:
                yield from tensors(inner)

    return tensor_bytes(tensors(list(optimizer.state.values())))


def breakdown(total: int, *, weights: int, gradients: int, optimizer: int) -> MemoryParts:
    """Split a measured peak of `total` bytes; the rest beside the known parts is activations.

    Weights may be in mapped files, which the measurement does not count: then the total is at least
    the sum of the known parts.
    """
    known = weights + gradients + optimizer
    return MemoryParts(max(total, known), weights, gradients, optimizer, max(0, total - known))
