"""w8a8 by Triton: both base products on int8 tensor cores."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from peftlab_kernels.int8_format import Int8Rows, Int8Weight
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.triton.configurations import Target, target_of
from peftlab_kernels.triton.int8_product import int8_product
from peftlab_kernels.triton.int8_weight import transpose
from peftlab_kernels.triton.lora_backward import cross, dy_side
from peftlab_kernels.triton.lora_forward import down_project
from peftlab_kernels.triton.operands import (
    empty_forward,
    empty_gradients,
    launching_on,
    rows_contiguous,
)
from peftlab_kernels.triton.partials import Sum, add_up
from peftlab_kernels.triton.philox import draw_seed, dropout_of
from peftlab_kernels.triton.quantize import quantize_rows


@dataclass(frozen=True, slots=True)
class TritonInt8Kernels:
    """`target` defaults to the device's own."""

    target: Target | None = None

    @property
    def name(self) -> str:
        """As `use_backend` spells it."""
        return "triton"

    def quantize(self, x: Tensor) -> Int8Rows:
        """See `protocol.Int8Kernels`."""
        if x.numel() == 0:
            return Int8Rows(
                torch.zeros(x.shape, dtype=torch.int8, device=x.device),
                torch.zeros(x.shape[0], dtype=torch.float32, device=x.device),
            )
        with launching_on(x):
            return quantize_rows(rows_contiguous(x), target=self.target or target_of(x.device))

    def forward(
        self,
        x: Int8Rows,
        weight: Int8Weight,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        dtype: torch.dtype,
        scaling: float,
        dropout: float,
    ) -> LoraForward:
        """See `protocol.Int8Kernels`; h has `padded_rank` columns, the mask is its seed."""
        if x.codes.numel() == 0 or weight.codes.numel() == 0:
            return empty_forward(len(x.codes), weight, bias, lora_a, dtype=dtype)
        target = self.target or target_of(x.codes.device)
        with launching_on(x.codes):
            x = _ready(x)
            seed = draw_seed() if lora_a is not None and dropout > 0 else None
            h = None
            if lora_a is not None:
                drop = dropout_of(seed, dropout)
                h = down_project(
                    x, lora_a, factor=scaling * drop.scale, dtype=dtype, dropout=drop,
                    target=target,
                )  # fmt: skip
            y = int8_product(
                x, rows_contiguous(weight.codes), h, None if lora_b is None else lora_b.T,
                dtype=dtype, target=target, scales=weight.scales.contiguous(),
                bias=None if bias is None else bias.contiguous(),
            )  # fmt: skip
            return LoraForward(y, h, seed)

    def backward(
        self,
        dy: Tensor,
        x: Int8Rows | None,
        weight: Int8Weight,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        h: Tensor | None,
        mask: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        needs: Needs,
    ) -> LoraGradients:
        """See `protocol.Int8Kernels`."""
        if dy.numel() == 0 or weight.codes.numel() == 0:
            return empty_gradients(dy, weight, lora_a, lora_b, needs)
        target = self.target or target_of(dy.device)
        drop = dropout_of(mask, dropout)
        with launching_on(dy):
            dy = rows_contiguous(dy)
            g = da = db = dx = None
            if lora_a is not None and lora_b is not None:
                sums: list[Sum] = []
                g, db = dy_side(dy, lora_b, h, scaling * drop.scale, target, needs, sums)
                if needs.lora_a and x is not None and g is not None:
                    da = cross(g, _ready(x), lora_a, dropout=drop, target=target, unfinished=sums)
                add_up(*sums)
            if needs.x:
                rows = quantize_rows(dy, weight.scales.contiguous(), target=target)
                transposed = transpose(weight.codes, target=target)
                dx = int8_product(
                    rows, transposed, g, lora_a, dtype=dy.dtype, target=target, dropout=drop
                )
            return LoraGradients(dx, da, db)


def _ready(x: Int8Rows) -> Int8Rows:
    return Int8Rows(rows_contiguous(x.codes), x.steps.contiguous())
