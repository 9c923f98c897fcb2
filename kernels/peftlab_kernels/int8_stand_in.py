"""A stand-in for `functional.int8_lora_linear` until that is here: the frozen layer alone."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from peftlab_kernels.int8_format import int8_dequantize


class _FrozenProduct(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, scales: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(codes, scales)
        ctx.bias_dtype = None if bias is None else bias.dtype
        weight = int8_dequantize(codes, scales, torch.empty_like(codes, dtype=x.dtype))
        return F.linear(x, weight, None if bias is None else bias.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, None, None, Tensor | None]:
        codes, scales = ctx.saved_tensors
        dx = db = None
        if ctx.needs_input_grad[0]:
            dx = dy @ int8_dequantize(codes, scales, torch.empty_like(codes, dtype=dy.dtype))
        if ctx.needs_input_grad[3]:
            db = dy.reshape(-1, dy.shape[-1]).sum(0).to(ctx.bias_dtype)
        return dx, None, None, db


def int8_lora_linear(
    x: Tensor, codes: Tensor, scales: Tensor, *, bias: Tensor | None = None, arithmetic: str
) -> Tensor:
    """`x [..., K]` -> `[..., N]` in x's dtype."""
    assert arithmetic == "w8a16"
    if torch.is_autocast_enabled(x.device.type):
        x = x.to(torch.get_autocast_dtype(x.device.type))
    y: Tensor = _FrozenProduct.apply(x, codes, scales, bias)  # type: ignore[no-untyped-call]
    return y
