"""A LoRA adapter added to the output of a layer computed elsewhere, such as bitsandbytes' NF4.

Legend as in `reference`. The thin products are torch's on every device.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from peftlab_kernels.backends import thin_dtype
from peftlab_kernels.checks import check_adapter
from peftlab_kernels.eager.dropout_mask import drop, empty_mask, scale_of_kept
from peftlab_kernels.eager.low_rank import cross, down_project, masked_blocks, of_transposed, times
from peftlab_kernels.row_blocks import cached_elements, row_blocks
from peftlab_kernels.scaling import fold_scaling


def lora_added(
    y: Tensor,
    x: Tensor,
    lora_a: Tensor,
    lora_b: Tensor,
    *,
    scaling: float | Tensor = 1.0,
    lora_bias: Tensor | None = None,
    dropout: float = 0.0,
) -> Tensor:
    """`y + scaling * (dropout(x) A^T B^T + lora_bias)`, written into y, which may not be a leaf.

    Args:
        y: `[..., N]`, floating, contiguous; its own backward must not need its value.
        x: `[..., K]`, floating, the input that y was computed from; saved for backward as it is.
        lora_a, lora_b, scaling, lora_bias, dropout: as `lora_linear` has them.

    Returns:
        y itself.

    Raises:
        ValueError: shapes that do not fit, a scaling of several elements, a dropout outside [0, 1).
        TypeError: tensors that are not floating.

    Second derivatives are not supported.
    """
    if x.shape[:-1] != y.shape[:-1] or not y.is_contiguous():
        raise ValueError(
            f"y has shape {tuple(y.shape)} and x {tuple(x.shape)}; y must be contiguous and have "
            "as many rows as x"
        )
    check_adapter(x.shape[-1], y.shape[-1], lora_a, lora_b, None, lora_bias, dropout)
    factor, up, lora_bias = fold_scaling(scaling, lora_b, lora_bias)
    if lora_bias is not None:
        y = y + (lora_bias * factor).to(y.dtype)
    with torch.autocast(y.device.type, enabled=False):
        added: Tensor = LoraAdded.apply(  # type: ignore[no-untyped-call]
            y, x, lora_a, up, factor, dropout
        )
    return added


class LoraAdded(torch.autograd.Function):
    """`lora_added` after its checks."""

    @staticmethod
    def forward(
        ctx: Any, y: Tensor, x: Tensor, lora_a: Tensor, lora_b: Tensor, scaling: float, p: float
    ) -> Tensor:
        """Adds to `y [..., N]` in place; `x [..., K]`."""
        rows, out = x.reshape(-1, x.shape[-1]), y.view(-1, y.shape[-1])
        thin = thin_dtype(x)
        mask = empty_mask(rows) if p > 0 else None
        h = down_project(rows, lora_a.to(thin), mask, scaling, p)
        up = lora_b.to(thin).T
        if out.dtype is thin:
            out.addmm_(h, up)
        else:
            for block in row_blocks(out.shape[0], out.shape[1], cached_elements()):
                out[block] += h[block] @ up
        ctx.mark_dirty(y)
        _, ctx.x_needs, ctx.a_needs, ctx.b_needs = ctx.needs_input_grad[:4]
        ctx.factor = scaling * (1.0 if mask is None else scale_of_kept(p))
        ctx.save_for_backward(
            x if ctx.a_needs else None, lora_a, lora_b, h if ctx.b_needs else None, mask
        )
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Gradients of y, which is dy, and of x, A and B, each in its own dtype."""
        x, lora_a, lora_b, h, mask = ctx.saved_tensors
        rows = dy.reshape(-1, dy.shape[-1])
        thin = thin_dtype(dy)
        dx = da = db = None
        if ctx.x_needs or ctx.a_needs:
            g = times(rows, lora_b.to(thin)).mul_(ctx.factor)
            if ctx.x_needs:
                dx = _masked_product(g, lora_a.to(thin), mask, dy.dtype)
                dx = dx.view(*dy.shape[:-1], dx.shape[1])
            if ctx.a_needs:
                da = cross(g, x.reshape(-1, x.shape[-1]), mask).to(lora_a.dtype)
        if h is not None:
            db = of_transposed(h, rows) if h.dtype is rows.dtype else cross(h, rows).T.contiguous()
            db = db.to(lora_b.dtype)
        return dy, dx, da, db, None, None


def _masked_product(g: Tensor, a: Tensor, mask: Tensor | None, dtype: torch.dtype) -> Tensor:
    """`D (g A)` [M, K] in the dtype."""
    if mask is None and g.dtype is dtype:
        return g @ a
    out = g.new_empty(g.shape[0], a.shape[1], dtype=dtype)
    for block, keep in masked_blocks(mask, *out.shape):
        part = g[block] @ a
        out[block] = part if keep is None else drop(part, keep, part)
    return out
