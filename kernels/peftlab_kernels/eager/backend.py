"""LoRA's linear layer in plain torch, fast and lean: for CPUs, MPS, and CUDA without Triton.

Beside the base product nothing of size [M, N] or [M, K] is formed: the low-rank parts are added in
place, and dropout on a CPU works on a block of rows at a time (on other devices the mask and the
dropped input are whole tensors). Scaling and the 1 / (1 - p) of dropout are folded into the thin
`h` and `g`.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from peftlab_kernels.eager import products
from peftlab_kernels.eager.dropout_mask import drop, empty_mask, kept_rows, scale_of_kept, scratch
from peftlab_kernels.eager.low_rank import cross, down_project, of_transposed
from peftlab_kernels.eager.products import Weight, in_features_of, out_features_of
from peftlab_kernels.protocol import LoraForward, LoraGradients, Needs
from peftlab_kernels.row_blocks import row_slices

Arithmetic = Literal["native", "fp32"]
"""How 16-bit activations are multiplied: natively, or widened to fp32 some rows at a time."""

WIDENED_ROWS = 1024
"""Rows of activations widened at a time: many, because the weight is widened anew for each."""


@dataclass(frozen=True, slots=True)
class EagerKernels:
    """The torch path, and the arithmetic of 16-bit activations in each of its two passes."""

    forward_arithmetic: Arithmetic = "native"
    backward_arithmetic: Arithmetic = "native"

    @property
    def name(self) -> str:
        """As `use_backend` spells it."""
        return "torch"

    def forward(
        self,
        x: Tensor,
        weight: Weight,
        bias: Tensor | None,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
    ) -> LoraForward:
        """See `protocol.Kernels`; the mask is as `dropout_mask.empty_mask` describes it."""
        wide = _widens(x, self.forward_arithmetic)
        dtype = torch.float32 if wide else x.dtype
        a, b = _cast(lora_a, dtype), _cast(lora_b, dtype)
        mask = empty_mask(x) if a is not None and dropout > 0 else None
        h = None if a is None else down_project(x, a, mask, scaling, dropout)
        if not wide:
            y = products.forward(x, weight, bias, transposed=transposed)
            if h is not None and b is not None:
                y.addmm_(h, b.T)
            return LoraForward(y, h, mask)
        y = x.new_empty(x.shape[0], out_features_of(weight, transposed=transposed))
        for rows in row_slices(x.shape[0], WIDENED_ROWS):
            part = products.forward(x[rows].float(), weight, bias, transposed=transposed)
            if h is not None and b is not None:
                part.addmm_(h[rows], b.T)
            y[rows] = part
        return LoraForward(y, _cast(h, x.dtype), mask)

    def backward(
        self,
        dy: Tensor,
        x: Tensor | None,
        weight: Weight,
        lora_a: Tensor | None,
        lora_b: Tensor | None,
        h: Tensor | None,
        mask: Tensor | None,
        *,
        scaling: float,
        dropout: float,
        transposed: bool,
        needs: Needs,
    ) -> LoraGradients:
        """See `protocol.Kernels`."""
        wide = _widens(dy, self.backward_arithmetic)
        dtype = torch.float32 if wide else dy.dtype
        a, b = _cast(lora_a, dtype), _cast(lora_b, dtype)
        factor = scaling * (1.0 if mask is None else scale_of_kept(dropout))
        if not wide:
            gradients = _gradients(dy, x, weight, a, b, h, mask, factor, transposed, needs)
        else:
            gradients = _summed(
                (
                    _gradients(
                        dy[rows].float(), _rows(x, rows), weight, a, b,
                        _cast(_rows(h, rows), dtype), _rows(mask, rows), factor, transposed, needs,
                    )
                    for rows in row_slices(dy.shape[0], WIDENED_ROWS)
                ),
                dy, in_features_of(weight, transposed=transposed), a, b, needs,
            )  # fmt: skip
        return LoraGradients(
            gradients.x,
            _cast(gradients.lora_a, None if lora_a is None else lora_a.dtype),
            _cast(gradients.lora_b, None if lora_b is None else lora_b.dtype),
        )


def _gradients(
    dy: Tensor,
    x: Tensor | None,
    weight: Weight,
    a: Tensor | None,
    b: Tensor | None,
    h: Tensor | None,
    mask: Tensor | None,
    factor: float,
    transposed: bool,
    needs: Needs,
) -> LoraGradients:
    """Every gradient in dy's dtype; `factor` is s / (1 - p)."""
    dx = products.backward(dy, weight, transposed=transposed) if needs.x else None
    if a is None or b is None:
        return LoraGradients(dx, None, None)
    db = of_transposed(h, dy) if needs.lora_b and h is not None else None
    if not (needs.x or needs.lora_a):
        return LoraGradients(dx, None, db)
    g = (dy @ b).mul_(factor)
    x = x if needs.lora_a else None
    if mask is None:
        if dx is not None:
            dx.addmm_(g, a)
        return LoraGradients(dx, None if x is None else cross(g, x), db)
    da = (
        None
        if x is None
        else torch.zeros_like(a, dtype=torch.promote_types(a.dtype, torch.float32))
    )
    dx_buffer = scratch(mask, a.shape[1], g.dtype)
    x_buffer = dx_buffer if x is None or x.dtype is g.dtype else scratch(mask, a.shape[1], x.dtype)
    for rows, keep in kept_rows(mask, a.shape[1]):
        if dx is not None:
            part = torch.mm(g[rows], a, out=dx_buffer[: keep.shape[0]])
            dx[rows].add_(drop(part, keep, part))  # += would write the rows of dx twice
        if x is not None and da is not None:
            da += g[rows].T @ drop(x[rows], keep, x_buffer[: keep.shape[0]]).to(g.dtype)
    return LoraGradients(dx, da, db)


def _summed(
    parts: Iterator[LoraGradients],
    dy: Tensor,
    in_features: int,
    a: Tensor | None,
    b: Tensor | None,
    needs: Needs,
) -> LoraGradients:
    """The gradients of all rows from those of each `WIDENED_ROWS` rows."""
    dx = dy.new_empty(dy.shape[0], in_features) if needs.x else None
    da = torch.zeros_like(a) if needs.lora_a and a is not None else None
    db = torch.zeros_like(b) if needs.lora_b and b is not None else None
    for rows, part in zip(row_slices(dy.shape[0], WIDENED_ROWS), parts, strict=True):
        if dx is not None and part.x is not None:
            dx[rows] = part.x
        if da is not None and part.lora_a is not None:
            da += part.lora_a
        if db is not None and part.lora_b is not None:
            db += part.lora_b
    return LoraGradients(dx, da, db)


def _rows(tensor: Tensor | None, rows: slice) -> Tensor | None:
    return None if tensor is None else tensor[rows]


def _cast(tensor: Tensor | None, dtype: torch.dtype | None) -> Tensor | None:
    return None if tensor is None else tensor.to(dtype or tensor.dtype)


def _widens(activations: Tensor, arithmetic: Arithmetic) -> bool:
    return arithmetic == "fp32" and activations.dtype is not torch.float32
