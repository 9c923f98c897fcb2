"""PEFT's own LoRA layer with another forward."""

from __future__ import annotations

from typing import Any

from peft.tuners import lora
from torch import Tensor

from peftlab.fusion.guards import Parts, ordinary, parts_of, takes
from peftlab_kernels import functional


class FusedLoraLinear(lora.Linear):
    """A `peft.tuners.lora.Linear` whose class was swapped: the same state, computed by the kernels.

    Never constructed. Whatever PEFT does with the layer finds PEFT's attributes, and a call that
    the kernels cannot compute as PEFT would is PEFT's.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x [..., K] -> y [..., N]`, in the dtype that PEFT's forward gives."""
        # A hook may hold this function and call it after the class was swapped back: hence
        # isinstance, and no super().
        if not args and not kwargs and isinstance(self, FusedLoraLinear) and ordinary(x):
            parts = parts_of(self)
            if isinstance(parts, Parts) and takes(parts, x):
                return functional.lora_linear(
                    x,
                    parts.weight,
                    parts.lora_a,
                    parts.lora_b,
                    scaling=parts.scaling,
                    bias=parts.bias,
                    lora_bias=parts.lora_bias,
                    dropout=parts.dropout,
                    transposed=parts.transposed,
                )
        result: Tensor = lora.Linear.forward(self, x, *args, **kwargs)
        return result
