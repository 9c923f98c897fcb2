"""Our 8-bit layer, computed as its gate says, and the weights of every kind of 8-bit layer.

Made by swapping the class of an instance, as in `frozen_linear`. bitsandbytes' layers have their
own module, since bitsandbytes may be missing.
"""

from __future__ import annotations

import sys
from functools import cache
from typing import TYPE_CHECKING, Any

from torch import Tensor
from torch.compiler import is_compiling

from peftlab.fusion.int8.gate import frozen_int8, gate_of
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.int8_linear import Int8Linear

if TYPE_CHECKING:
    from types import ModuleType

_weights_module: ModuleType | None = None


class GatedInt8Linear(Int8Linear):
    """An `Int8Linear` that computes as its gate says, w8a16 without one. Never constructed."""

    def forward(self, input: Tensor) -> Tensor:
        """`input [..., K]` -> `[..., N]` in its dtype."""
        weight = Int8Weight(self.weight, self.SCB)
        return frozen_int8(input, weight, self.bias, gate_of(self))


def bitsandbytes_weights() -> ModuleType | None:
    """The module that reads bitsandbytes' weights; None where bitsandbytes is not loaded.

    torch.compile cannot trace an import: there the result is that of the call in `fuse`.
    """
    global _weights_module
    if not is_compiling() and _weights_module is None and "bitsandbytes" in sys.modules:
        _weights_module = _import_weights()
    return _weights_module


@cache
def _import_weights() -> ModuleType | None:
    try:
        from peftlab.fusion.int8 import bitsandbytes_weights
    except ImportError:  # another module of that name
        return None
    return bitsandbytes_weights


def is_packed(module: Any) -> bool:
    """Whether a layer's weight is one that only bitsandbytes can read, 4-bit."""
    readers = bitsandbytes_weights()
    return readers is not None and readers.is_packed(module)


def int8_weight_of(module: Any) -> Int8Weight | str | None:
    """The 8-bit weight of a layer, or why it must not be read; None for any other layer."""
    if isinstance(module, Int8Linear):
        if type(module) not in (Int8Linear, GatedInt8Linear):
            return f"its base is a {type(module).__name__}, derived from an 8-bit layer"
        codes, scales = module._parameters.get("weight"), module._buffers.get("SCB")
        if codes is None or scales is None or codes.is_floating_point():
            return "its 8-bit weight has not been read yet"
        return Int8Weight(codes, scales)
    readers = bitsandbytes_weights()
    return None if readers is None else readers.weight_of(module)
