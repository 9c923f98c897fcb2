"""PEFT's own LoRA layer with another forward."""

from __future__ import annotations

from typing import Any

from peft.tuners import lora
from torch import Tensor

from peftlab.fusion.guards import Parts, ordinary, parts_of, takes
from peftlab_kernels import functional
from peftlab_kernels.functional import Int8Arithmetic
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.int8_linear import Int8Linear


class FusedLoraLinear(lora.Linear):
    """A `peft.tuners.lora.Linear` whose class was swapped: the same state, computed by the kernels.

    Never constructed. The layer keeps PEFT's attributes, and PEFT's forward computes every call
    that the kernels cannot compute as PEFT would.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x [..., K] -> y [..., N]`, in the dtype that PEFT's forward gives."""
        # A hook may hold this function and call it after the class was swapped back: hence
        # isinstance, and no super().
        if not args and not kwargs and isinstance(self, FusedLoraLinear):
            y = computed(self, x)
            if y is not None:
                return y
        result: Tensor = lora.Linear.forward(self, x, *args, **kwargs)
        return result

    def merge(self, safe_merge: bool = False, adapter_names: list[str] | None = None) -> None:
        """PEFT's own merge. Raises `ValueError` over an 8-bit base, whose codes it corrupts."""
        if isinstance(self.get_base_layer(), Int8Linear):
            raise ValueError(
                "an adapter cannot be merged into 8-bit codes; merge it into the 16-bit checkpoint "
                "that the base was made from"
            )
        lora.Linear.merge(self, safe_merge=safe_merge, adapter_names=adapter_names)


def computed(layer: Any, x: Tensor) -> Tensor | None:
    """A LoRA layer's output by the kernels; None where they cannot compute this call as PEFT."""
    if not ordinary(x):
        return None
    parts = parts_of(layer)
    if not isinstance(parts, Parts) or not takes(parts, x):
        return None
    if parts.scales is not None:
        return _over_8_bits(parts, parts.scales, x)
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


def _over_8_bits(parts: Parts, scales: Tensor, x: Tensor) -> Tensor:
    def call(arithmetic: Int8Arithmetic) -> Tensor:
        return functional.int8_lora_linear(
            x,
            parts.weight,
            scales,
            parts.lora_a,
            parts.lora_b,
            scaling=parts.scaling,
            bias=parts.bias,
            lora_bias=parts.lora_bias,
            dropout=parts.dropout,
            arithmetic=arithmetic,
        )

    if parts.gate is None:
        return call("w8a16")
    return parts.gate.compute(x, Int8Weight(parts.weight, scales), call)
