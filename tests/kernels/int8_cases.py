"""A call of `int8_lora_linear`, and what float64 makes of it: of the function or of its codes."""

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
    """One call's tensors, random and on leaves, and what float64 makes of them."""

    shape: tuple[int, int, int, int]
    arithmetic: Int8Arithmetic = "w8a8"
    dtype: torch.dtype = torch.float32
    adapter_dtype: torch.dtype | None = None
    dropout: float = 0.0
    bias: bool = True
    scaling: float = 1.7
    tensors: dict[str, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        rows, features, outs, rank = self.shape
        draw = torch.Generator().manual_seed(sum(self.shape))

        def random(*shape: int, dtype: torch.dtype | None = None) -> Tensor:
            found = torch.randn(shape, generator=draw, dtype=torch.float64) / 3
            return found.to(dtype or self.dtype)

        codes, scales = int8_quantize(random(outs, features, dtype=torch.float32))
        self.tensors = {
            "x": random(rows, features).requires_grad_(),
            "codes": codes,
            "scales": scales,
            "lora_a": random(rank, features, dtype=self.adapter_dtype).requires_grad_(),
            "lora_b": random(outs, rank, dtype=self.adapter_dtype).requires_grad_(),
        }
        if self.bias:
            self.tensors["bias"] = random(outs).requires_grad_()

    @property
    def leaves(self) -> dict[str, Tensor]:
        """All that requires a gradient."""
        return {name: t for name, t in self.tensors.items() if t.requires_grad}

    def forward(self, **changes: Any) -> Tensor:
        """The output, with its graph."""
        fixed: dict[str, Any] = {
            "scaling": self.scaling, "dropout": self.dropout, "arithmetic": self.arithmetic,
        }  # fmt: skip
        return int8_lora_linear(**self.tensors | fixed | changes)

    def run(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The output and the gradients of all that requires one."""
        torch.manual_seed(seed)
        y = self.forward()
        found = torch.autograd.grad(y, list(self.leaves.values()), self.dy(y))
        return y.detach(), dict(zip(self.leaves, found, strict=True))

    def dy(self, y: Tensor) -> Tensor:
        """Random, of y's shape and dtype."""
        draw = torch.Generator().manual_seed(9)
        return torch.randn(y.shape, generator=draw, dtype=torch.float64).to(y.dtype)

    def kernels(self) -> EagerInt8Kernels:
        """What computes the call with w8a8."""
        found = int8_kernels_for(self.tensors["x"], self.weight)
        assert isinstance(found, EagerInt8Kernels)
        return found

    @property
    def weight(self) -> Int8Weight:
        """The frozen weight."""
        return Int8Weight(self.tensors["codes"], self.tensors["scales"])

    def exact(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The function: no activation is rounded, and W is what its codes stand for."""
        return self._in_float64(seed, self._wide("x"), "function")

    def twin(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """The arithmetic: w8a8's very codes, of x and of dy, multiplied in float64."""
        if self.arithmetic == "w8a16":
            return self.exact(seed)
        rows = self.kernels().quantize(self.tensors["x"].detach())
        x = rows.codes.double() * rows.steps.double().unsqueeze(1)
        return self._in_float64(seed, x, "codes")

    def uncancelled(self, seed: int = 3) -> tuple[Tensor, Gradients]:
        """How large the results are where their terms do not cancel.

        Rounding is in proportion to this, whatever becomes of a result that is one number.
        """
        y, gradients = self._in_float64(seed, self._wide("x", 2), "squares")
        return y.sqrt(), {name: gradient.sqrt() for name, gradient in gradients.items()}

    def _wide(self, name: str, power: int = 1) -> Tensor:
        return self.tensors[name].detach().double() ** power

    def _in_float64(
        self, seed: int, x: Tensor, what: Literal["function", "codes", "squares"]
    ) -> tuple[Tensor, Gradients]:
        """By the reference; for squares of every number's square, as each of its terms then is."""
        power = 2 if what == "squares" else 1
        keep = self._keep(seed, power)
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
        found = reference.int8_lora_linear_backward(wide, x, codes, scales, *adapter, **fixed)
        gradients = found._asdict()
        if what == "codes":
            gradients["x"] += self._folded(dy) @ codes - wide @ reference.dequantize_rows(
                codes, scales
            )
        if self.bias:
            gradients["bias"] = wide.sum(0)
        return y, gradients

    def _folded(self, dy: Tensor) -> Tensor:
        """dy with W's scales in it, as backward's codes have it."""
        largest = largest_code(self.kernels().backward_engine)
        rows = quantize_rows(dy, largest, self.tensors["scales"] / 127)
        return rows.codes.double() * rows.steps.double().unsqueeze(1)

    def _keep(self, seed: int, power: int) -> Tensor | None:
        if not self.dropout:
            return None
        torch.manual_seed(seed)
        x = self.tensors["x"]
        keep = torch.full(x.shape, torch.nan, dtype=torch.float64)
        for rows, kept in draw_rows(empty_mask(x), x.shape[1], self.dropout):
            keep[rows] = kept.double() * scale_of_kept(self.dropout) ** power
        return keep
