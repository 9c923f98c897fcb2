"""Kernels of peftlab: torch and Triton only, nothing of PEFT or Transformers.

The names below are public; each is imported with its module when it is first used.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from peftlab_kernels.dispatch import requested_backend, use_backend
    from peftlab_kernels.functional import int8_lora_linear, lora_linear
    from peftlab_kernels.int8_format import Int8Weight, int8_dequantize, int8_quantize
    from peftlab_kernels.int8_linear import Int8Linear

__all__ = [
    "Int8Linear",
    "Int8Weight",
    "int8_dequantize",
    "int8_lora_linear",
    "int8_quantize",
    "lora_linear",
    "requested_backend",
    "use_backend",
]

_MODULES = {
    "Int8Linear": "int8_linear",
    "Int8Weight": "int8_format",
    "int8_dequantize": "int8_format",
    "int8_lora_linear": "functional",
    "int8_quantize": "int8_format",
    "lora_linear": "functional",
    "requested_backend": "dispatch",
    "use_backend": "dispatch",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(import_module(f"{__name__}.{_MODULES[name]}"), name)
