"""bitsandbytes' 8-bit layers, computed by our kernels, and how the weights of its layers are read.

Their own arithmetic differs between training (weights dequantised) and evaluation (activations
quantised too, with outlier columns apart) by some percent of the logits. Ours does not.
Imported only where bitsandbytes is.
"""

from __future__ import annotations

from typing import Any

import torch
from bitsandbytes.nn.modules import Linear4bit, Linear8bitLt
from torch import Tensor

from peftlab.fusion.int8.gate import frozen_int8, gate_of
from peftlab_kernels.int8_format import Int8Weight


class GatedLinear8bitLt(Linear8bitLt):
    """A frozen `Linear8bitLt` that computes as its gate says, w8a16 without one. Never constructed.

    bitsandbytes computes a weight that is not quantised yet, or trains in 16 bits.
    """

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` -> `[..., N]` in its dtype."""
        weight = weight_of(self)
        if not isinstance(weight, Int8Weight):
            result: Tensor = Linear8bitLt.forward(self, x)
            return result
        return frozen_int8(x, weight, self.bias, gate_of(self))


def is_packed(module: Any) -> bool:
    """Whether a layer's weight is in 4 bits, which only bitsandbytes reads."""
    return type(module) is Linear4bit


def weight_of(module: Any) -> Int8Weight | str | None:
    """The codes and scales of a `Linear8bitLt`, or why they must not be read; None for others."""
    if not isinstance(module, Linear8bitLt):
        return None
    if type(module) not in (Linear8bitLt, GatedLinear8bitLt):
        return f"its base is a {type(module).__name__}, derived from bitsandbytes' layer"
    weight, state = module.weight, module.state
    if state.has_fp16_weights:
        return "its 8-bit weight is kept in 16 bits as well, and may train"
    # Loading leaves the scales on the parameter; bitsandbytes' first forward moves them.
    scales = getattr(weight, "SCB", None)
    scales = state.SCB if scales is None else scales
    if weight.dtype is not torch.int8 or scales is None:
        return "its 8-bit weight has not been quantised yet"
    return Int8Weight(weight.detach().as_subclass(Tensor), scales)
