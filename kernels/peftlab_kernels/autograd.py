"""The autograd Function: what is saved for backward, and which gradients are returned.

Saved are the weight and the two adapter matrices, and, each only where a gradient needs it, x in
its own dtype, h, and the dropout's bits or seed. Never a copy of x, a float mask, or a widened
weight.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftlab_kernels.dispatch import kernels_for
from peftlab_kernels.protocol import Kernels, Needs


class LoraLinear(torch.autograd.Function):
    """`lora_linear` on matrices; `functional.lora_linear` has checked and flattened them."""

    @staticmethod
    def forward(
        ctx: Any,
        x: Tensor,
        weight: Tensor,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> Tensor:
        """`x [M, K] -> y [M, N]`, as `protocol.Kernels.forward` has it."""
        ctx.kernels = kernels_for(x, weight, lora_a, lora_b, dropout=dropout, transposed=transposed)
        kernels: Kernels = ctx.kernels
        y, h, mask = kernels.forward(
            x, weight, bias, lora_a, lora_b,
            scaling=scaling, dropout=dropout, transposed=transposed,
        )  # fmt: skip
        x_needs, _, bias_needs, a_needs, b_needs = ctx.needs_input_grad[:5]
        ctx.scaling, ctx.dropout, ctx.transposed = scaling, dropout, transposed
        ctx.needs = Needs(x_needs, a_needs, b_needs)
        ctx.bias_dtype = bias.dtype if bias is not None and bias_needs else None
        ctx.save_for_backward(
            x if a_needs else None,
            weight,
            lora_a,
            lora_b,
            h if b_needs else None,
            mask if x_needs or a_needs else None,
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of x, bias, A and B, each in the dtype of what it belongs to."""
        x, weight, lora_a, lora_b, h, mask = ctx.saved_tensors
        with torch.autocast(dy.device.type, enabled=False):
            found = ctx.kernels.backward(
                dy, x, weight, lora_a, lora_b, h, mask,
                scaling=ctx.scaling, dropout=ctx.dropout, transposed=ctx.transposed,
                needs=ctx.needs,
            )  # fmt: skip
            bias = None
            if ctx.bias_dtype is not None:
                bias = dy.sum(0, dtype=torch.promote_types(dy.dtype, torch.float32))
                bias = bias.to(ctx.bias_dtype)
        return found.x, None, bias, found.lora_a, found.lora_b, None, None, None
