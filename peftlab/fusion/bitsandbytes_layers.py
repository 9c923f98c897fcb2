"""LoRA layers over bitsandbytes' 8-bit and 4-bit layers, computed by our kernels.

Imported only where bitsandbytes is.
"""

from __future__ import annotations

from typing import Any

from bitsandbytes.nn.modules import Linear8bitLt
from peft.tuners.lora import bnb as peft_bnb
from torch import Tensor

from peftlab.fusion.guards import Parts, ordinary, parts_of, takes
from peftlab.fusion.int8.bitsandbytes_weights import GatedLinear8bitLt
from peftlab.fusion.lora_layer import computed
from peftlab_kernels.lora_added import lora_added


class FusedLora8bitLt(peft_bnb.Linear8bitLt):
    """PEFT's LoRA layer over a `Linear8bitLt`, as `FusedLoraLinear` is over other bases."""

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x [..., K] -> y [..., N]`, in x's dtype."""
        if not args and not kwargs and isinstance(self, FusedLora8bitLt):
            y = computed(self, x)
            if y is not None:
                return y
        result: Tensor = peft_bnb.Linear8bitLt.forward(self, x, *args, **kwargs)
        return result


class FusedLora4bit(peft_bnb.Linear4bit):
    """PEFT's LoRA layer over a `Linear4bit`: the base product is bitsandbytes', the adapter ours.

    Added in place, from x as it is: neither a copy of the output, nor an fp32 copy of x, nor a
    float mask is made.
    """

    def forward(self, x: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """`x [..., K] -> y [..., N]`, in x's dtype."""
        if not args and not kwargs and isinstance(self, FusedLora4bit) and ordinary(x):
            parts = parts_of(self)
            if isinstance(parts, Parts) and takes(parts, x):
                y: Tensor = self.base_layer(x)
                return lora_added(
                    y.clone() if y._is_view() or not y.is_contiguous() else y,
                    x,
                    parts.lora_a,
                    parts.lora_b,
                    scaling=parts.scaling,
                    lora_bias=parts.lora_bias,
                    dropout=parts.dropout,
                )
        result: Tensor = peft_bnb.Linear4bit.forward(self, x, *args, **kwargs)
        return result


SWAPS: dict[type[Any], type[Any]] = {
    Linear8bitLt: GatedLinear8bitLt,
    peft_bnb.Linear8bitLt: FusedLora8bitLt,
    peft_bnb.Linear4bit: FusedLora4bit,
}
"""The fused class of each class; subclasses are not swapped."""
