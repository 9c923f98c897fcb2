"""The autograd Functions: what is saved for backward, and which gradients are returned.

Saved are the weight and the two adapter matrices, and, each only where a gradient needs it, x in
its own dtype or in 8 bits, h, and the bits or the seed of dropout; never a copy of x, a float mask,
or a widened weight.
"""

from __future__ import annotations

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftlab_kernels.dispatch import int8_kernels_for, kernels_for
from peftlab_kernels.int8_format import Int8Rows, Int8Weight
from peftlab_kernels.protocol import Int8Kernels, Kernels, LoraGradients, Needs

_LOSES_GRADIENTS = tuple(map(int, torch.__version__.split(".")[:2])) < (2, 12)


class LoraLinear(torch.autograd.Function):
    """`lora_linear` on matrices, checked and flattened; also `int8_lora_linear` with w8a16.

    With `scales`, `weight` holds the codes of a weight in 8 bits.
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        scales: Tensor | None,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> Tensor:
        """`x [M, K] -> y [M, N]`, see `protocol.Kernels.forward`."""
        whole = _weight(weight, scales)
        ctx.kernels = kernels_for(x, whole, lora_a, lora_b, dropout=dropout, transposed=transposed)
        kernels: Kernels = ctx.kernels
        y, h, mask = kernels.forward(
            x, whole, bias, lora_a, lora_b,
            scaling=scaling, dropout=dropout, transposed=transposed,
        )  # fmt: skip
        x_needs, _, _, bias_needs, a_needs, b_needs = ctx.needs_input_grad[:6]
        ctx.scaling, ctx.dropout, ctx.transposed = scaling, dropout, transposed
        ctx.needs = Needs(x_needs, a_needs, b_needs)
        ctx.bias_dtype = bias.dtype if bias is not None and bias_needs else None
        ctx.save_for_backward(
            x if a_needs else None,
            weight,
            scales,
            lora_a,
            lora_b,
            h if b_needs else None,
            mask if x_needs or a_needs else None,
        )
        return _returned(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias, A and B, each in the dtype of its tensor."""
        x, weight, scales, lora_a, lora_b, h, mask = ctx.saved_tensors
        with without_autocast(dy.device.type):
            of: LoraGradients = ctx.kernels.backward(
                dy, x, _weight(weight, scales), lora_a, lora_b, h, mask,
                scaling=ctx.scaling, dropout=ctx.dropout, transposed=ctx.transposed,
                needs=ctx.needs,
            )  # fmt: skip
            bias = _bias_gradient(dy, ctx.bias_dtype)
        return of.x, None, None, bias, of.lora_a, of.lora_b, None, None, None


class Int8LoraLinear(torch.autograd.Function):
    """`int8_lora_linear` with w8a8 on matrices, checked and flattened.

    x is an argument for its gradient, which passes the quantisation unchanged (straight-through);
    computed with, and saved, are its codes [M, K] and steps [M].
    """

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        x_codes: Tensor,
        x_steps: Tensor,
        codes: Tensor,
        scales: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scaling: float,
        dropout: float,
    ) -> Tensor:
        """`x [M, K] -> y [M, N]`, see `protocol.Int8Kernels.forward`."""
        weight = Int8Weight(codes, scales)
        ctx.kernels = int8_kernels_for(x, weight, lora_a, lora_b)
        kernels: Int8Kernels = ctx.kernels
        y, h, mask = kernels.forward(
            Int8Rows(x_codes, x_steps), weight, bias, lora_a, lora_b,
            dtype=x.dtype, scaling=scaling, dropout=dropout,
        )  # fmt: skip
        x_needs, _, _, _, _, bias_needs, a_needs, b_needs = ctx.needs_input_grad[:8]
        ctx.scaling, ctx.dropout = scaling, dropout
        ctx.needs = Needs(x_needs, a_needs, b_needs)
        ctx.bias_dtype = bias.dtype if bias is not None and bias_needs else None
        ctx.save_for_backward(
            x_codes if a_needs else None,
            x_steps if a_needs else None,
            codes,
            scales,
            lora_a,
            lora_b,
            h if b_needs else None,
            mask if x_needs or a_needs else None,
        )
        return _returned(y)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias, A and B, each in the dtype of its tensor."""
        x_codes, x_steps, codes, scales, lora_a, lora_b, h, mask = ctx.saved_tensors
        with without_autocast(dy.device.type):
            of: LoraGradients = ctx.kernels.backward(
                dy, None if x_codes is None else Int8Rows(x_codes, x_steps),
                Int8Weight(codes, scales), lora_a, lora_b, h, mask,
                scaling=ctx.scaling, dropout=ctx.dropout, needs=ctx.needs,
            )  # fmt: skip
            bias = _bias_gradient(dy, ctx.bias_dtype)
        return of.x, None, None, None, None, bias, of.lora_a, of.lora_b, None, None


def _returned(y: Tensor) -> Tensor:
    """y; in a graph that torch 2.11 traces, a copy.

    Its graphs silently send zeros backward through a result that forward wrote into.
    """
    return y.clone() if _LOSES_GRADIENTS and torch.compiler.is_compiling() else y


def _weight(weight: Tensor, scales: Tensor | None) -> Tensor | Int8Weight:
    return weight if scales is None else Int8Weight(weight, scales)


def _bias_gradient(dy: Tensor, dtype: torch.dtype | None) -> Tensor | None:
    if dtype is None:
        return None
    return dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32)).to(dtype)


def without_autocast(device: str) -> AbstractContextManager[object]:
    """Switch autocast off for this device type; free where it is off already."""
    if torch.is_autocast_enabled(device):
        return torch.autocast(device, enabled=False)
    return nullcontext()
