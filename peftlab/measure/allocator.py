"""glibc's allocator, set to keep large buffers instead of returning them to the kernel.

By default every temporary above 128 KiB is mapped when it is allocated and unmapped when it is
freed, so a training step spends time on page faults: 17,000 per step for a small BERT, 5 to 18 %
of the step.
"""

from __future__ import annotations

import ctypes
import platform
from typing import Any

# <malloc.h>: numbers of the parameters of mallopt.
_M_TRIM_THRESHOLD = -1
_M_MMAP_THRESHOLD = -3
_KEPT_BYTES = 1 << 30
# Older glibc refuses an mmap threshold above half of its HEAP_MAX_SIZE.
_MMAP_BYTES = (_KEPT_BYTES, 32 << 20)


def keep_large_buffers() -> bool:
    """Raise glibc's mmap and trim thresholds for this process; True on success.

    Affects later allocations, so call it before models are loaded. Does nothing on other C
    libraries (musl, macOS, Windows). Idempotent.
    """
    mallopt = _glibc("mallopt")
    if mallopt is None:
        return False
    mallopt.argtypes = (ctypes.c_int, ctypes.c_int)
    mallopt.restype = ctypes.c_int
    # mallopt returns 1 for success. Setting one threshold switches off the dynamic adjustment of
    # both, so either both are raised or the result is worse than the default.
    mapped = any(mallopt(_M_MMAP_THRESHOLD, size) for size in _MMAP_BYTES)
    return mapped and bool(mallopt(_M_TRIM_THRESHOLD, _KEPT_BYTES))


def return_free_memory() -> None:
    """Return freed memory to the kernel, so that later allocations show as growth."""
    malloc_trim = _glibc("malloc_trim")
    if malloc_trim is not None:
        malloc_trim.argtypes = (ctypes.c_size_t,)
        malloc_trim.restype = ctypes.c_int
        malloc_trim(0)


def _glibc(function: str) -> Any:
    if platform.libc_ver()[0] != "glibc":
        return None
    try:
        return getattr(ctypes.CDLL(None), function)
    except (OSError, AttributeError):
        return None
