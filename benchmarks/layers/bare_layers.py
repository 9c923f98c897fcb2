"""Baselines without a library: a plain autograd Function, and the integer products alone."""

from __future__ import annotations

from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

from benchmarks.layers.layer_case import SCALING, Case, Weights


class PlainAddmm(torch.autograd.Function):
    """A straightforward implementation: torch's products, the low-rank parts added in place.

    Torch's own dropout, whose result and boolean mask are kept. A fair peer: no copy of x, no
    gradient of the weight.
    """

    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor, lora_a: Tensor, lora_b: Tensor, dropout: float
    ) -> Tensor:
        """`x [M, K]`, `weight [N, K]`, `lora_a [R, K]`, `lora_b [N, R]` -> `[M, N]` as x."""
        a, b = lora_a.to(x.dtype), lora_b.to(x.dtype)
        dropped, kept = torch.native_dropout(x, dropout, True) if dropout else (x, None)
        h = (dropped @ a.T).mul_(SCALING)
        y = F.linear(x, weight).addmm_(h, b.T)
        ctx.save_for_backward(dropped, kept, weight, a, b, h)
        ctx.dropout, ctx.dtypes = dropout, (lora_a.dtype, lora_b.dtype)
        return y

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """The gradients of x, A and B."""
        dropped, kept, weight, a, b, h = ctx.saved_tensors
        g = (dy @ b).mul_(SCALING)
        dx = dy @ weight
        if kept is None:
            dx.addmm_(g, a)
        else:
            dx.add_((g @ a).mul_(kept), alpha=1 / (1 - ctx.dropout))
        # On a CPU dy.T @ h would be ten times slower.
        da, db = g.T @ dropped, (h.T @ dy).T
        return dx, None, da.to(ctx.dtypes[0]), db.to(ctx.dtypes[1]), None


class PlainLayer(nn.Module):
    """`PlainAddmm` as a layer."""

    def __init__(self, case: Case, weights: Weights) -> None:
        super().__init__()
        self.weight = nn.Parameter(weights.weight, requires_grad=False)
        self.lora_a = nn.Parameter(weights.lora_a.clone())
        self.lora_b = nn.Parameter(weights.lora_b.clone())
        self.dropout = case.dropout

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`."""
        y: Tensor = PlainAddmm.apply(  # type: ignore[no-untyped-call]
            x, self.weight, self.lora_a, self.lora_b, self.dropout
        )
        return y


class IntegerProducts(nn.Module):
    """The two integer products of a w8a8 layer alone, a lower limit of its time."""

    def __init__(self, case: Case, weights: Weights) -> None:
        super().__init__()
        from peftlab_kernels.eager.cpu_arithmetic import int8_engine
        from peftlab_kernels.int8_format import int8_quantize

        self.codes = int8_quantize(weights.weight)[0]
        self.engines = int8_engine("x @ W.T"), int8_engine("dy @ W")

    def forward(self, x: Tensor) -> Tensor:
        """`[M, K] -> [M, N]`, of codes that do not depend on x."""
        y: Tensor = _Products.apply(x, self.codes, self.engines)  # type: ignore[no-untyped-call]
        return y


class _Products(torch.autograd.Function):
    """Multiplies codes of x's and dy's shapes, made once."""

    made: ClassVar[dict[tuple[int, int], Tensor]] = {}

    @classmethod
    def rows(cls, like: Tensor) -> Tensor:
        """int8 codes of this shape, within 6 bits for every engine."""
        shape = (like.shape[0], like.shape[1])
        if shape not in cls.made:
            cls.made[shape] = torch.randint(-63, 64, shape, dtype=torch.int8)
        return cls.made[shape]

    @staticmethod
    def forward(ctx: Any, x: Tensor, codes: Tensor, engines: Any) -> Tensor:
        """Forward's product, discarded."""
        from peftlab_kernels.eager.int8_products import multiplier

        ctx.codes, ctx.engine, ctx.shape = codes, engines[1], x.shape
        multiplier(engines[0], codes, transposed=False)(_Products.rows(x))
        return x.new_empty(x.shape[0], codes.shape[0])

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        """Backward's product, discarded."""
        from peftlab_kernels.eager.int8_products import multiplier

        multiplier(ctx.engine, ctx.codes, transposed=True)(_Products.rows(dy))
        return dy.new_empty(ctx.shape), None, None
