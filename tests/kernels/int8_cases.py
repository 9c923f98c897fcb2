"""A call of `int8_lora_linear`, and its float64 results: of the function or of its codes."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor

from peftlab_kernels import reference
from peftlab_kernels.dispatch import int8_kernels_for
from peftlab_kernels.eager.dropout_mask import draw_rows, empty_mask, scale_of_kept
from peftlab_kernels.eager.int8_backend import EagerInt8Kernels
from peftlab_kernels.eager.int8_products import largest_code, quantize_rows
from peftlab_kernels.functional import Int8Arithmetic, int8_lora_linear
from peftlab_kernels.int8_format import Int8Weight, int8_quantize

Gradients = dict[str, Tensor]


@dataclass
class Int8Case:
    """One call's random tensors, its results, and those of float64."""

    shape: tuple[int, int, int, int]
    arithmetic: Int8Arithmetic = "w8a8"
    dtype: torch.dtype = torch.float32
    adapter_dtype: torch.dtype | None = None
    dropout: float = 0.0
    bias: bool = True
    scaling: float = 1.7
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, in_features, out_features, rank = self.shape
        draw = torch.Generator().manual_seed(sum(self.shape))

        def random(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
            values = torch.randn(shape, generator=draw, dtype=torch.float64) / 3
            return values.to(dtype or self.dtype)

        codes, scales = int8_quantize(random(out_features, in_features, dtype=torch.float32))
        self.tensors = {
            "x": random(rows, in_features).requires_grad_(),
            "codes": codes,
            "scales": scales,
            "lora_a": random(rank, in_features, dtype=self.adapter_dtype).requires_grad_(),
            "lora_b": random(out_features, rank, dtype=self.adapter_dtype).requires_grad_(),
        }
        if self.bias:
            self.tensors["bias"] = random(out_features).requires_grad_()

    @property
    def leaves(self) -> dict[str, Tensor]:
        """The tensors that require a gradient."""
        return {name: t for name, t in self.tensors.items() if t.requires_grad}

    def forward(self, **changes: Any) -> Tensor:
        """The output, with its graph."""
        fixed: dict[str, Any] = {
            "scaling": self.scaling, "dropout": self.dropout, "arithmetic": self.arithmetic,
        }  # fmt: skip
        return int8_lora_linear(**self.tensors | fixed | changes)

    def run(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The output and the gradients of the leaves."""
        torch.manual_seed(seed)
        y = self.forward()
        gradients = torch.autograd.grad(y, list(self.leaves.values()), self.dy(y))
        return y.detach(), dict(zip(self.leaves, gradients, strict=True))

    def dy(self, y: Tensor) -> Tensor:
        """Random, of y's shape and dtype."""
        draw = torch.Generator().manual_seed(9)
        return torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y.dtype)

    def kernels(self) -> EagerInt8Kernels:
        """The kernels that compute the call with w8a8."""
        chosen = int8_kernels_for(self.tensors["x"], self.weight)
        assert isinstance(chosen, EagerInt8Kernels)
        return chosen

    @property
    def weight(self) -> Int8Weight:
        """The frozen weight."""
        return Int8Weight(self.tensors["codes"], self.tensors["scales"])

    def exact(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The function: no activation is rounded, and W is dequantised from its codes."""
        return self._in_float64(seed, self._wide("x"), "function")

    def twin(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The arithmetic: the same codes of x and of dy as w8a8's, multiplied in float64."""
        if self.arithmetic == "w8a16":
            return self.exact(seed)
        rows = self.kernels().quantize(self.tensors["x"].detach())
        x = rows.codes.double() * rows.steps.double().unsqueeze(1)
        return self._in_float64(seed, x, "codes")

    def uncancelled(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The size of the results where their terms do not cancel.

        Rounding errors are in proportion to it, however small a sum of few terms is.
        """
        y, gradients = self._in_float64(seed, self._wide("x", 2), "squares")
        return y.sqrt(), {name: gradient.sqrt() for name, gradient in gradients.items()}

    def _wide(self, name: str, power: int = 1) -> Tensor:
        return self.tensors[name].detach().double() ** power

    def _in_float64(
        self, seed: int, x: Tensor, what: Literal["function", "codes", "squares"]
    ) -> tuple[Tensor, Gradients]:
        """By the reference; `squares` squares every number, and so every term."""
        power = 2 if what == "squares" else 1
        keep = self.keep(seed, power)
        codes = self._wide("codes", power)
        # codes^2 * (scales^2 / 127) / 127 is the weight's square.
        scales = self._wide("scales", power) / 127 ** (power - 1)
        adapter = (self._wide("lora_a", power), self._wide("lora_b", power))
        bias = self._wide("bias", power) if self.bias else None
        fixed: dict[str, Any] = {
            "scaling": self.scaling**power, "keep": keep, "arithmetic": "w8a16",
        }  # fmt: skip
        y = reference.int8_lora_linear(x, codes, scales, *adapter, bias=bias, **fixed)
        dy = self.dy(y).to(self.dtype)
        wide = dy.double() ** power
        backward = reference.int8_lora_linear_backward(wide, x, codes, scales, *adapter, **fixed)
        gradients = backward._asdict()
        if what == "codes":
            gradients["x"] += self._folded(dy) @ codes - wide @ reference.dequantize_rows(
                codes, scales
            )
        if self.bias:
            gradients["bias"] = wide.sum(0)
        return y, gradients

    def _folded(self, dy: Tensor) -> Tensor:
        """dy with W's scales folded in, dequantised from the codes of backward."""
        largest = largest_code(self.kernels().backward_engine)
        rows = quantize_rows(dy, largest, self.tensors["scales"] / 127)
        return rows.codes.double() * rows.steps.double().unsqueeze(1)

    def keep(self, seed: int, power: int) -> Tensor | None:
        """The dropout mask divided by (1 - p)^power, as the seed draws it; None without dropout."""
        if not self.dropout:
            return None
        torch.manual_seed(seed)
        x = self.tensors["x"]
        keep = torch.full(x.shape, torch.nan, dtype=torch.float64)
        for rows, kept in draw_rows(empty_mask(x), x.shape[1], self.dropout):
            keep[rows] = kept.double() * scale_of_kept(self.dropout) ** power
        return keep
