"""bitsandbytes' 8-bit layers, computed by our kernels, and adapters over its 4-bit ones.

Its own arithmetic differs between training (weights dequantised) and evaluation (activations
quantised too, with outlier columns apart) by some percent of the logits. Ours does not.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from peft.tuners.lora import bnb as peft_bnb
from torch import Tensor

from peftlab.fusion.guards import Parts, ordinary, parts_of, takes
from peftlab.fusion.int8.gate import gate_of
from peftlab.fusion.int8.layers import frozen_int8
from peftlab.fusion.lora_layer import computed
from peftlab_kernels.int8_format import Int8Weight
from peftlab_kernels.lora_added import lora_added


class GatedLinear8bitLt(Linear8bitLt):
    """A frozen `Linear8bitLt` that computes as its gate says, w8a16 without one. Never constructed.

    A weight that is not quantised yet, or trains in 16 bits, is bitsandbytes' to compute.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in its dtype."""
        weight = weight_of(self)
        if not isinstance(weight, Int8Weight):
            result: Tensor = Linear8bitLt.forward(self, x)
            return result
        return frozen_int8(x, weight, self.bias, gate_of(self))


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


def is_packed(module: Any) -> bool:
    """As `int8_layers.is_packed`."""
    return type(module) is Linear4bit


def weight_of(module: Any) -> Int8Weight | str | None:
    """The codes and scales of a `Linear8bitLt`, or why they must not be read; None for others."""
    if not isinstance(module, Linear8bitLt):
        return None
    if type(module) not in (Linear8bitLt, GatedLinear8bitLt):
        return f"its base is a {type(module).__name__}, made from bitsandbytes' layer"
    weight, state = module.weight, module.state
    if state.has_fp16_weights:
        return "its 8-bit weight is kept in 16 bits as well, and may train"
    # Loading leaves the scales on the parameter; bitsandbytes' first forward moves them.
    scales = getattr(weight, "SCB", None)
    scales = state.SCB if scales is None else scales
    if weight.dtype is not torch.int8 or scales is None:
        return "its 8-bit weight has not been quantised yet"
    return Int8Weight(weight.detach().as_subclass(Tensor), scales)


SWAPS: dict[type[Any], type[Any]] = {
    Linear8bitLt: GatedLinear8bitLt,
    peft_bnb.Linear8bitLt: FusedLora8bitLt,
    peft_bnb.Linear4bit: FusedLora4bit,
}
"""What becomes what; these very classes only."""
