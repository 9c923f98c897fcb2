"""Layers whose weights rest in 16 bits while their inputs and outputs are fp32.

Each is torch's or Transformers' own layer with another forward, made by swapping the class of an
instance: the state, its names and whatever tests `isinstance` stay as they were. A call that the
kernels must not compute is computed by torch, also in fp32: where PEFT copied the layer to train it
as a whole, or full fine-tuning uses it, its weight gets its gradient.

Legend: B batch, T tokens, K in-features, N out-features, V vocabulary.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from peftlab_kernels.functional import lora_linear

SIXTEEN_BITS = frozenset({torch.bfloat16, torch.float16})


class FrozenLinear(nn.Linear):
    """A `torch.nn.Linear` with a 16-bit weight that takes fp32 inputs. Never constructed."""

    def forward(self, input: Tensor) -> Tensor:
        """`input [..., K]` in fp32 -> [..., N] in fp32; any other call is `torch.nn.Linear`'s."""
        # The layer's own forward by name, not super(): a hook may hold this function and call it
        # after the class was swapped back.
        if not meets_in_fp32(self.weight, self.bias, input):
            return nn.Linear.forward(self, input)
        if kernels_compute(self.weight, input):
            return lora_linear(input, self.weight.detach(), bias=self.bias)
        return F.linear(input, self.weight.float(), _float(self.bias))


class FrozenConv1D(Conv1D):
    """The same for GPT-2's layer, whose weight is [K, N]. Never constructed."""

    def forward(self, x: Tensor) -> Tensor:
        """`x [..., K]` in fp32 -> [..., N] in fp32; any other call is `Conv1D`'s."""
        if not meets_in_fp32(self.weight, self.bias, x):
            y: Tensor = Conv1D.forward(self, x)
            return y
        if kernels_compute(self.weight, x):
            return lora_linear(x, self.weight.detach(), bias=self.bias, transposed=True)
        return F.linear(x, self.weight.float().T, _float(self.bias))


class WideEmbedding(nn.Embedding):
    """A `torch.nn.Embedding` that looks up in 16 bits and widens the vectors."""

    def forward(self, input: Tensor) -> Tensor:
        """Ids [B, T] below V -> vectors [B, T, N] in fp32."""
        weight = self.weight
        if weight.dtype not in SIXTEEN_BITS:
            return nn.Embedding.forward(self, input)
        plain = self.max_norm is None and not self.sparse
        if plain and weight.requires_grad and torch.is_grad_enabled():
            # Widened first, so that the gradients of one id's many places are added up in fp32.
            return F.embedding(
                input, weight.float(), self.padding_idx, scale_grad_by_freq=self.scale_grad_by_freq
            )
        return nn.Embedding.forward(self, input).float()


WIDE: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: FrozenLinear,
    Conv1D: FrozenConv1D,
    nn.Embedding: WideEmbedding,
}
"""Class by class. Subclasses are left alone: what they do to their weights is unknown."""

PLAIN = {wide: plain for plain, wide in WIDE.items()}


def meets_in_fp32(weight: Tensor, bias: Tensor | None, x: Tensor) -> bool:
    """Whether an fp32 input meets a 16-bit parameter, and autocast does not cast them."""
    if x.dtype is not torch.float32:
        return False
    if not x.is_meta and torch.is_autocast_enabled(x.device.type):  # there is no autocast for meta
        return False
    return weight.dtype in SIXTEEN_BITS or (bias is not None and bias.dtype in SIXTEEN_BITS)


def kernels_compute(weight: Tensor, x: Tensor) -> bool:
    """Whether the kernels may compute this call.

    They give the weight no gradient, and support neither tensor subclasses nor forward-mode
    derivatives.
    """
    return (
        weight.dtype in SIXTEEN_BITS
        and not (weight.requires_grad and torch.is_grad_enabled())
        and type(weight) in {nn.Parameter, Tensor}
        and type(x) in {nn.Parameter, Tensor}
        and not weight.is_meta
        and x.device == weight.device
        and not x.is_nested
        and not hasattr(weight, "ds_id")
        and not torch._C._are_functorch_transforms_active()
    )


def _float(bias: Tensor | None) -> Tensor | None:
    return None if bias is None else bias.float()
