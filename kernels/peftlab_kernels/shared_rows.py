"""One quantisation for all layers that read the same activation: q, k and v, gate and up.

The latest one is cached, for as long as its activation lives and is not modified.
"""

from __future__ import annotations

import threading
from typing import NamedTuple
from weakref import ref

import torch
from torch import Tensor

from peftlab_kernels.dispatch import int8_kernels_for
from peftlab_kernels.int8_format import Int8Rows, Int8Weight
from peftlab_kernels.protocol import Int8Kernels


class _Made(NamedTuple):
    of: ref[Tensor]
    version: int
    dtype: torch.dtype
    by: Int8Kernels
    rows: Int8Rows


class _Latest(threading.local):
    made: _Made | None = None


_latest = _Latest()


def shared_rows(x: Tensor, rows: Tensor, weight: Int8Weight) -> Int8Rows:
    """`rows [M, K]`, x in the dtype of the arithmetic, quantised to 8 bits by rows."""
    kernels = int8_kernels_for(rows, weight)
    if torch.compiler.is_compiling() or x.is_inference():  # no weak references, no versions
        return _quantized(kernels, rows)
    made = _latest.made
    if (
        made is not None
        and made.of() is x
        and made.version == x._version
        and made.dtype is rows.dtype
        and made.by == kernels
    ):
        return made.rows
    quantized = _quantized(kernels, rows)
    _latest.made = _Made(ref(x, _forget), x._version, rows.dtype, kernels, quantized)
    return quantized


def _quantized(kernels: Int8Kernels, rows: Tensor) -> Int8Rows:
    with torch.no_grad():
        return kernels.quantize(rows.detach())


def _forget(gone: ref[Tensor]) -> None:
    """Free the cached rows of an activation that is gone; in its thread, or with the next one."""
    if _latest.made is not None and _latest.made.of is gone:
        _latest.made = None
