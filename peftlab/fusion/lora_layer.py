"""PEFT's own LoRA layer with another forward."""

from __future__ import annotations

from typing import Any

from peft.tuners import lora
from torch import Tensor

from peftlab.fusion.guards import Parts, ordinary, parts_of, takes
from peftlab_kernels import functional
from peftlab_kernels.int8_linear import Int8Linear


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

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's own merge. Raises `ValueError` over an 8-bit base, whose codes it would spoil."""
        if isinstance(self.get_base_layer(), Int8Linear):
            raise ValueError(
                "an adapter cannot be merged into 8-bit codes; merge it into the 16-bit checkpoint "
                "that the base was made from"
            )
        lora.Linear.merge(self, safe_merge=safe_merge, adapter_names=adapter_names)
