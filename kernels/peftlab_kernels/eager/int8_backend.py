"""w8a8 on a CPU: both operands of the two base products in 8 bits, by an integer engine.

Rows are processed in chunks, each of which is multiplied and finished before the next: neither
int32 sums nor fp32 activations of size [M, N] exist, and y and dx are written once.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from peftlab_kernels.eager.dropout_mask import drop, empty_mask, scale_of_kept
from peftlab_kernels.eager.int8_products import Engine, largest_code, multiplier, quantize_rows
from peftlab_kernels.eager.low_rank import cross, down_project, masked_blocks, of_transposed, times
from peftlab_kernels.int8_format import LARGEST_CODE, Int8Rows, Int8Weight
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.row_blocks import cached_elements, row_blocks, row_slices

CHUNK_ROWS = 1024
"""Rows multiplied at a time: many, because an engine packs the weight anew for each product."""


@dataclass(frozen=True, slots=True)
class EagerInt8Kernels:
    """The torch path: an engine for each of the two base products, and the thin products' dtype.

    `native`: whether thin products of bf16 activations are computed in bf16; otherwise, and for
    fp16, which the codes could overflow, they are computed in fp32.
    """

    forward_engine: Engine = "int_mm"
    backward_engine: Engine = "int_mm"
    native: bool = True

    @property
    def name(self) -> str:
        """As `use_backend` spells it."""
        return "torch"

    def quantize(self, x: Tensor) -> Int8Rows:
        """See `protocol.Int8Kernels`."""
        return quantize_rows(x, largest_code(self.forward_engine))

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
        """See `protocol.Int8Kernels`; the mask is as `dropout_mask.empty_mask` describes it."""
        thin = self._thin(dtype)
        mask = empty_mask(x.codes) if lora_a is not None and dropout > 0 else None
        h = None
        if lora_a is not None:
            h = down_project(x.codes, lora_a.to(thin), mask, scaling, dropout)
            h.mul_(x.steps.unsqueeze(1))
        wide = torch.promote_types(dtype, torch.float32)
        y = torch.empty(len(x.codes), len(weight.codes), dtype=dtype, device=x.codes.device)
        up = None if lora_b is None else lora_b.to(wide).T
        added = None if bias is None else bias.to(wide)
        scales = weight.scales / LARGEST_CODE
        multiply = multiplier(self.forward_engine, weight.codes, transposed=False)
        for chunk in row_slices(x.codes.shape[0], CHUNK_ROWS):
            sums = multiply(x.codes[chunk])
            for rows in _finished(sums):
                whole = slice(chunk.start + rows.start, chunk.start + rows.stop)
                part = sums[rows].to(wide).mul_(scales).mul_(x.steps[whole].unsqueeze(1))
                if added is not None:
                    part += added
                if h is not None and up is not None:
                    part.addmm_(h[whole].to(wide), up)
                y[whole] = part
        return LoraForward(y, h, mask)

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
        thin = self._thin(dy.dtype)
        factor = scaling * (1.0 if mask is None else scale_of_kept(dropout))
        trains = lora_a is not None and lora_b is not None
        g = None
        if trains and lora_b is not None and (needs.x or needs.lora_a):
            g = times(dy, lora_b.to(thin)).mul_(factor)
        dx = None
        if needs.x:
            a = None if lora_a is None else lora_a.to(thin)
            dx = self._x_gradient(dy, weight, g, a, mask)
        da = db = None
        if g is not None and x is not None and lora_a is not None and needs.lora_a:
            scaled = g * x.steps.unsqueeze(1).to(g.dtype)
            da = cross(scaled, x.codes, mask).to(lora_a.dtype)
        if h is not None and lora_b is not None and needs.lora_b:
            db = of_transposed(h, dy) if h.dtype is dy.dtype else cross(h, dy).T.contiguous()
            db = db.to(lora_b.dtype)
        return LoraGradients(dx, da, db)

    def _x_gradient(
        self,
        dy: Tensor,
        weight: Int8Weight,
        g: Tensor | None,
        a: Tensor | None,
        mask: Tensor | None,
    ) -> Tensor:
        """`dy W + D (g A)`: the scales of W's rows go into dy before it is quantised."""
        wide = torch.promote_types(dy.dtype, torch.float32)
        largest = largest_code(self.backward_engine)
        scales = weight.scales / LARGEST_CODE
        multiply = multiplier(self.backward_engine, weight.codes, transposed=True)
        dx = dy.new_empty(dy.shape[0], weight.codes.shape[1])
        for chunk in row_slices(dy.shape[0], CHUNK_ROWS):
            folded = quantize_rows(dy[chunk], largest, scales)
            sums = multiply(folded.codes)
            kept = None if mask is None or g is None else mask[chunk]
            for rows, keep in masked_blocks(kept, sums.shape[0], sums.shape[1]):
                part = sums[rows].to(wide).mul_(folded.steps[rows].unsqueeze(1))
                if g is not None and a is not None:
                    thin = g[chunk][rows]
                    if keep is None:
                        part.addmm_(thin.to(wide), a.to(wide))
                    else:
                        added = thin @ a
                        part += drop(added, keep, added)
                dx[chunk][rows] = part
        return dx

    def _thin(self, dtype: torch.dtype) -> torch.dtype:
        """The dtype of the products with A and B."""
        if dtype is torch.float64 or (dtype is torch.bfloat16 and self.native):
            return dtype
        return torch.float32


def _finished(sums: Tensor) -> Iterator[slice]:
    return row_blocks(sums.shape[0], sums.shape[1], cached_elements())
